# t2i-bench in a container, Debian base, exact versions of requirements.lock, not as root.
#   docker build --build-arg VARIANT=cpu -t t2i-bench:cpu .        CPU: small, runs the embedded backbone
#   docker build -t t2i-bench:cuda .                               CUDA (default): the torch of the lock file brings its CUDA
#   docker run --rm -v "$PWD:/data" t2i-bench:cpu method=pair dataset=halftone seed=0
#   docker run --rm --gpus all -v "$PWD:/data" t2i-bench:cuda method=pair dataset=parkhouse backbone=sdxl
# Results and the cache go to /data, the folder that you mount; give --user "$(id -u):$(id -g)" to own them.
ARG VARIANT=cuda

FROM python:3.12-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv && /venv/bin/pip install uv
ENV PATH=/venv/bin:$PATH VIRTUAL_ENV=/venv
COPY requirements.lock /src/

# The CPU build of torch: the same version, without the CUDA packages of the lock file.
FROM base AS packages-cpu
RUN grep -vE '^(nvidia-|cuda-|triton)' /src/requirements.lock > /src/cpu.lock \
    && uv pip install --torch-backend cpu --no-deps -r /src/cpu.lock

FROM base AS packages-cuda
RUN uv pip install --no-deps -r /src/requirements.lock

FROM packages-${VARIANT} AS packages
COPY . /src
RUN uv pip install --no-deps /src

FROM python:3.12-slim-bookworm
COPY --from=packages /venv /venv
RUN useradd --create-home --uid 1000 bench && mkdir /data && chown bench /data
ENV PATH=/venv/bin:$PATH BENCH_RESULTS=/data/results BENCH_CACHE=/data/.cache HF_HOME=/data/.cache/huggingface
USER bench
WORKDIR /data
ENTRYPOINT ["t2i-bench"]
CMD ["--help"]
