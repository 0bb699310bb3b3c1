"""LoopMDM: pre-training of looped masked diffusion language models."""

from pathlib import Path

from setuptools import setup

# Ranges for users who bring their own torch; launchers/pins.txt (Python 3.11) and pins-py312.txt have the exact versions that
# the tests run with. pretrain/machine/versions.py has the reasons for the ranges of the first three, and checks them.
REQUIRES = [
    "torch>=2.11",
    "deepspeed>=0.19.8,<0.20",
    "megatron-core>=0.16.1,<0.20",  # 0.16.1 is the last for Python 3.11; 0.17 and later need 3.12
    "datasets>=3.0",
    "duckdb>=1.4",
    "flufl.lock>=8,<11",
    "fsspec>=2024.2",
    "numpy>=1.26",
    "packaging>=24.2",
    "protobuf>=5",
    "psutil>=5.9",
    "pyarrow>=17",
    "pydantic>=2.11,<3",
    "PyYAML>=6.0",
    "rensa>=0.5",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "setuptools",  # DeepSpeed imports it at run time without declaring it
    "tensorboard>=2.18",
    "tokenizers>=0.20",
]

setup(
    name="loopmdm",
    version="0.1.0",
    description="Pre-training of looped masked diffusion language models on megatron-core and DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=[
        "pretrain",
        "pretrain.checkpoints",
        "pretrain.commands",
        "pretrain.config",
        "pretrain.evaluation",
        "pretrain.evaluation.tasks",
        "pretrain.export",
        "pretrain.inspection",
        "pretrain.machine",
        "pretrain.optimizer",
        "pretrain.parallel",
        "pretrain.planning",
        "pretrain.studies",
        "pretrain.training",
        "pretrain.training.hooks",
        "model",
        "model.sampling",
        "data_pipeline",
        "data_pipeline.dataset",
        "data_pipeline.generators",
        "data_pipeline.packing",
        "data_pipeline.readers",
        "data_pipeline.tasks",
        "data_pipeline.tokenizers",
        "ds_configs",
        "loopmdm_cli",
    ],
    package_dir={"loopmdm_cli": "launchers/loopmdm_cli"},  # the others are in the folders of their names
    package_data={
        "pretrain": ["recipes/*.yaml"],
        "pretrain.inspection": ["page.*"],
        "pretrain.studies": ["definitions/*.yaml"],
        "ds_configs": ["*.json"],
    },
    install_requires=REQUIRES,
    extras_require={
        # Optional accelerations. NVIDIA's apex is not on PyPI (the package of that name there is another project):
        # build it from its repository if you want it; `loopmdm doctor` says what was found.
        "gpu": ["transformer-engine[pytorch]>=2.0"],
        "eval": ["lm-eval>=0.4.13", "transformers>=4.57"],
        # Inputs in object stores: `--input s3://...`, `gs://...`. Take the version of fsspec that is installed.
        "s3": ["s3fs>=2024.2"],
        "gcs": ["gcsfs>=2024.2"],
        "wandb": ["wandb>=0.25"],
        "trackio": ["trackio>=0.40"],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "codespell>=2.3",
            "matplotlib>=3.9",
            "s3fs>=2024.2",
            "moto[s3]>=5",  # a local S3 server, with the next two
            "flask>=3",
            "flask-cors>=5",
            "transformers>=4.57",  # loads what `loopmdm export` writes
        ],
    },
    entry_points={"console_scripts": ["loopmdm=loopmdm_cli:command"]},
)
