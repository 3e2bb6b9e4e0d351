# PyTorch and JAX on NVIDIA GPUs: both bring CUDA as Python packages, and the host its driver and container toolkit.
#
#     docker build -t entropyfloor .
#     docker run --rm --gpus all entropyfloor doctor
#     mkdir -p runs && chmod a+w runs    # the user of the image has the number 1000
#     docker run --rm --gpus all -v "$PWD/runs:/home/user/runs" entropyfloor train control --env dmc/walker-run
FROM python:3.11-slim-bookworm

# Off-screen rendering of MuJoCo, for films of episodes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y git libegl1 libgl1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --home-dir /home/user user

WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md CITATION.cff constraints.txt ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt '.[all]' 'jax[cuda13]'

USER 1000
WORKDIR /home/user
ENV MUJOCO_GL=egl NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics XLA_PYTHON_CLIENT_MEM_FRACTION=0.6
ENTRYPOINT ["entropyfloor"]
CMD ["doctor"]
