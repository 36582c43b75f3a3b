# moh-deploy in NVIDIA's TensorRT image, with its kernels for CPUs and for NVIDIA GPUs (docs/running-engines.md). It
# builds, verifies, measures and serves packages and engines. Export needs PyTorch, which is not in it.
#
#   docker build -t moh-deploy .
#   docker run --rm --gpus all --user "$(id -u)" -v "$PWD:/work" moh-deploy build model --backend tensorrt --output engine
#
# An engine runs with the TensorRT that built it: take the release of the image that is to run it.
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:25.08-py3

# The headers that the CPU kernels are built with are newer than the TensorRT image's Ubuntu.
FROM debian:trixie AS wheel
RUN apt-get update && apt-get install --yes --no-install-recommends \
    cmake make g++ libonnxruntime-dev libhwy-dev python3-dev python3-setuptools python3-venv
COPY . /src
# Nothing comes from an index here: setuptools is Debian's.
RUN python3 -m venv --system-site-packages /venv && \
    MOH_DEPLOY_BUILD_KERNELS=require /venv/bin/pip wheel --no-index --no-deps --no-build-isolation \
    --wheel-dir /wheels /src

FROM ${TENSORRT_IMAGE} AS plugin
RUN apt-get update && apt-get install --yes --no-install-recommends cmake make g++
COPY . /src
RUN cd /src && make plugin

FROM ${TENSORRT_IMAGE}
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
COPY --from=wheel /wheels /wheels
COPY requirements-image.txt /
# The image's own `tensorrt` has to be found from here. The lock is for its Python (IMAGE_PYTHON of the Makefile).
RUN python3 -m venv --system-site-packages /opt/moh-deploy && \
    /opt/moh-deploy/bin/pip install --require-hashes --ignore-installed -r /requirements-image.txt && \
    /opt/moh-deploy/bin/pip install --no-index --no-deps /wheels/*.whl && \
    /opt/moh-deploy/bin/python -c "import tensorrt"
COPY --from=plugin /src/moh_deploy/native/libmoh_plugin*.so /plugins/
RUN cp /plugins/* "$(/opt/moh-deploy/bin/python -c 'from moh_deploy import native; print(native.FOLDER)')"
ENV PATH=/opt/moh-deploy/bin:$PATH
WORKDIR /work
# Ends the build where packages would not run on kernels.
RUN /opt/moh-deploy/bin/python -c "from moh_deploy.runtime.kernel_use import choose_kernels; choose_kernels('require')"
# What a package, a checkpoint or a client can reach is what this user can; mounted folders have to be writable for it.
RUN useradd --create-home --uid 10001 moh && chown moh /work
USER moh
ENTRYPOINT ["moh-deploy"]
CMD ["doctor"]
