from setuptools import find_packages, setup

setup(
    name="alphaalign_jax",
    version="0.1.0",
    description="AlphaAlign (arXiv 2507.14987) in JAX: safety alignment of language models by reinforcement learning",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["alphaalign_jax", "alphaalign_jax.*"]),
    package_data={"alphaalign_jax.demo_model": ["README.md", "weights/*"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11",
        "etils[epath]",  # paths that Orbax takes
        "fsspec",  # buckets
        "transformers>=5.0,<6",
        "tokenizers",
        "datasets>=3.0",
        "ml-collections>=1.0",
        "ml-dtypes",
        "safetensors>=0.5",
        "numpy>=2.0",
        "jinja2>=3.1",  # chat templates
        "rapidfuzz>=3.6",  # near-duplicates among prompts
        "rich>=13",
        "aiohttp>=3.12",  # a reward model behind HTTP; datasets brings it anyway
        "tensorboard>=2.18",  # its event writer, and what shows the files; tensorboardX would import torch
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "gguf": ["gguf>=0.10"],
        "gcs": ["gcsfs"],  # runs, data and models in gs:// buckets
        # Planning for a TPU where there is none: its compiler, and what draws the plots.
        "plan": ["jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'", "matplotlib>=3.8"],
        # torch is the reference that float32 logits are compared with; training never imports it.
        # libtpu compiles for TPU where there is none.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "pip-audit>=2.7",
            "gguf>=0.10",
            "accelerate",
            "pyyaml",
            # A bucket of Google Cloud Storage on this machine.
            "gcsfs",
            "gcp-storage-emulator>=2024.8",
            "torch>=2.6",
            "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
    },
    entry_points={"console_scripts": ["alphaalign = alphaalign_jax.cli:main"]},
)
