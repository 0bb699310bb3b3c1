"""What the settings of a run mean in DeepSpeed's keys."""

from typing import Any

from model.placement import Stage, weights_held
from pretrain.config.deepspeed_file import ds_config_path, read_ds_config, reduce_bucket
from pretrain.config.run_plan import RunPlan


def deepspeed_config(plan: RunPlan, stage: Stage) -> dict[str, Any]:
    """DeepSpeed's configuration: the keys of the run's DeepSpeed file and everything that follows from the settings.

    What overlaps with computation in DeepSpeed 0.19.8, according to its source; the calls were counted on gloo, nothing was run
    on several GPUs:

    - ZeRO-0 and 1 all-reduce gradients in `step`, after the last backward pass. With ZeRO-1 in bf16 (`bf16_optimizer.py`), hooks
      only add each gradient to its fp32 sum. The other class of ZeRO-1 (`zero/stage_1_and_2.py`) takes bf16 weights with fp32
      sums only under `offload_optimizer`; without `grad_accum_dtype` it rounds gradients to bf16 before it reduces them. In both
      cases `overlap_comm` is refused together with `managed_gradient_accumulation: false` (`engine.py`).
    - ZeRO-1 and 2 gather the updated weights in `step`, not during the next forward pass.
    - ZeRO-2 and 3 reduce gradients in every backward pass, each time `reduce_bucket_size` have come. Only `overlap_comm` lets
      the backward pass go on meanwhile. The shipped files leave it off: with it, ZeRO-2 has corrupted gradients more than once
      (issues 5545 and 8061, pull requests 7805 and 7965), and the stream on which ZeRO-3 gathers weights does not wait for the
      update (`zero/partitioned_param_coordinator.py`): what does is the host, for the gradient norm, in `Engine.step`. A
      DeepSpeed file may switch it on.
    """
    settings = plan.settings
    weights = weights_held(stage, settings.model, settings.parallel.tensor)
    config = read_ds_config(ds_config_path(settings))
    config |= {
        "train_batch_size": settings.train.global_batch_size,
        "train_micro_batch_size_per_gpu": settings.train.micro_batch_size,
        "gradient_accumulation_steps": plan.micro_batches,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.optim.clip_norm if settings.parallel.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,  # apex's FusedAdam and our Muon are not on DeepSpeed's list
        "steps_per_print": 2**62,
    }
    config.setdefault("zero_optimization", {})["reduce_bucket_size"] = reduce_bucket(settings, weights)
    offload = settings.parallel.offload
    if offload != "none":
        zero = config["zero_optimization"]
        zero["offload_optimizer"] = {"device": "cpu"} | zero.get("offload_optimizer", {})
        if offload == "parameters":
            zero["offload_param"] = {"device": "cpu"} | zero.get("offload_param", {})
        # DeepSpeed's own CPU Adam is compiled at start-up, but training must also start on a machine without a compiler.
        config["zero_force_ds_cpu_optimizer"] = False
    if settings.train.precision == "bf16":
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        # DeepSpeed's default is the dtype of the weights: gradients would be rounded to bf16 before the sum over ranks. A run
        # may choose that in its DeepSpeed file, for half the traffic.
        config.setdefault("communication_data_type", "fp32")
    return config
