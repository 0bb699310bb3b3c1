"""Keys that a DeepSpeed file may have, as DeepSpeed 0.19.8 reads them. tests/unit/test_deepspeed_keys.py compares the table
with the installed library, which ignores unknown top-level keys in silence. Imports no torch.
"""

from typing import Any

OFFLOAD_DEVICES = ("none", "cpu", "nvme")

OFFLOAD_PARAM = {
    "device": OFFLOAD_DEVICES, "nvme_path": str, "buffer_count": int, "buffer_size": int, "max_in_cpu": int,
    "pin_memory": bool,
}  # fmt: skip

OFFLOAD_OPTIMIZER = {
    "device": OFFLOAD_DEVICES, "nvme_path": str, "buffer_count": int, "pin_memory": bool, "pipeline_read": bool,
    "pipeline_write": bool, "fast_init": bool, "ratio": float, "super_offload": bool, "cpuadam_cores_perc": float,
}  # fmt: skip

ZERO_OPTIMIZATION = {
    "stage": int, "contiguous_gradients": bool, "reduce_scatter": bool, "reduce_bucket_size": int,
    "use_multi_rank_bucket_allreduce": bool, "allgather_partitions": bool, "allgather_bucket_size": int,
    "overlap_comm": bool, "compute_grad_norm": bool, "load_from_fp32_weights": bool, "elastic_checkpoint": bool,
    "offload_param": OFFLOAD_PARAM, "offload_optimizer": OFFLOAD_OPTIMIZER,
    "zenflow": {
        "topk_ratio": float, "select_strategy": str, "select_interval": (int, str), "update_interval": (int, str),
        "overlap_step": bool, "offload": bool, "auto_ratio": float, "full_warm_up_rounds": int,
        "pt_reserved_cores_perc": float, "steps_per_epoch": int,
    },
    "sub_group_size": int, "cpu_offload_param": bool, "cpu_offload_use_pin_memory": bool, "cpu_offload": bool,
    "stage3_prefetch_bucket_size": int, "stage3_param_persistence_threshold": int,
    "stage3_model_persistence_threshold": int, "stage3_max_live_parameters": int, "stage3_max_reuse_distance": int,
    "stage3_gather_16bit_weights_on_model_save": bool, "stage3_module_granularity_threshold": int,
    "stage3_use_all_reduce_for_fetch_params": bool, "stage3_allgather_sequential": bool,
    "stage3_gather_fp16_weights_on_model_save": bool, "ignore_unused_parameters": bool, "legacy_stage1": bool,
    "round_robin_gradients": bool, "parameter_alignment": bool, "zero_hpz_partition_size": int,
    "zero_quantized_weights": bool, "zero_quantized_nontrainable_weights": bool, "zero_quantized_gradients": bool,
    "memory_efficient_linear": bool, "pipeline_loading_checkpoint": bool, "override_module_apply": bool,
    "log_trace_cache_warnings": bool, "enable_sanity_checks": bool, "save_muon_momentum_buffer_in_memory": bool,
    "leaf_module": {"classes": list, "names": list, "name_suffixes": list},
}  # fmt: skip

DEEPSPEED_KEYS: dict[str, Any] = {
    "zero_optimization": ZERO_OPTIMIZATION,
    "communication_data_type": ("fp32", "bf16", "fp16"), "prescale_gradients": bool, "gradient_predivide_factor": float,
    "disable_allgather": bool, "disable_python_gc": bool, "zero_force_ds_cpu_optimizer": bool, "dump_state": bool,
    "wall_clock_breakdown": bool, "memory_breakdown": bool, "log_level": str,
    "checkpoint": {
        "tag_validation": str, "load_universal": bool, "use_node_local_storage": bool, "parallel_write": dict,
        "checkpoint_serialization": bool, "writer": dict,
    },
    "aio": {
        "block_size": int, "queue_depth": int, "intra_op_parallelism": int, "single_submit": bool,
        "overlap_events": bool, "use_gds": bool,
    },
    "flops_profiler": {
        "enabled": bool, "recompute_fwd_factor": float, "profile_step": int, "module_depth": int, "top_modules": int,
        "detailed": bool, "output_file": str,
    },
    "comms_logger": {"enabled": bool, "prof_all": bool, "prof_ops": list, "verbose": bool, "debug": bool},
    "timers": {"throughput": {"enabled": bool, "synchronized": bool}},
    "tensorboard": {"enabled": bool, "output_path": str, "job_name": str},
    "csv_monitor": {"enabled": bool, "output_path": str, "job_name": str},
    "wandb": {"enabled": bool, "group": str, "team": str, "project": str},
    "comet": {
        "enabled": bool, "samples_log_interval": int, "project": str, "workspace": str, "api_key": str,
        "experiment_name": str, "experiment_key": str, "online": bool, "mode": str,
    },
}  # fmt: skip
"""Key -> the type of its value: a tuple of choices or types, or the keys of a nested object."""

DERIVED_DEEPSPEED_KEYS = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "managed_gradient_accumulation": "parallel.*",
    "gradient_allreduce_op": "train.global_batch_size",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim.*",
    "scheduler": "optim.schedule",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "data_types": "train.precision",
    "torch_autocast": "train.precision",
    "zero_allow_untested_optimizer": "optim.*",
    "steps_per_print": "log.every",
    "activation_checkpointing": "parallel.recompute",
    "tensor_parallel": "parallel.tensor",
    "pipeline": "parallel.pipeline",
    "sequence_parallel_size": "parallel.tensor",
    "seq_parallel_communication_data_type": "parallel.sequence",
    "vocabulary_size": "model.vocab_size",
    "data_efficiency": "data.*",
    "dataloader_drop_last": "data.*",
    "autotuning": "parallel.*",
}
"""Keys of DeepSpeed's configuration that follow from the recipe -> the key to set instead."""

UNUSED_DEEPSPEED_KEYS = (
    "compile", "datastates_ckpt", "expert_parallel", "hybrid_engine", "use_data_before_expert_parallelism",
    "weight_quantization",
)  # fmt: skip
"""Keys that DeepSpeed knows and that have no effect on a looped masked diffusion model."""

REMOVED_DEEPSPEED_KEYS = (
    "amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity", "graph_harvesting", "nebula",
    "progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients",
)  # fmt: skip
"""Keys that earlier versions of DeepSpeed had."""

FAULTY_WHEN_TRUE = {
    # `safe_get_full_fp32_param` does not know the order of round robin.
    "zero_optimization.round_robin_gradients": "DeepSpeed 0.19.8 then mixes up the weights that a checkpoint saves for evaluation",
    "zero_optimization.cpu_offload": "an old name of offload_optimizer, which follows from parallel.offload",
    "zero_optimization.cpu_offload_param": "an old name of offload_param, which follows from parallel.offload",
}
"""Dotted key -> what goes wrong if it is true."""
