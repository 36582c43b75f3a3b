"""Find out what is on this machine: one kind of thing a file, facts and no opinion.

    ask           calls a function in a process of its own; its crash is an answer
    packages      Python packages, and the versions that moh-deploy wants
    cpu           ONNX Runtime, function bodies and CPU kernels: one operator, run and compared
    attention_run that operator
    gpu           NVIDIA's driver and GPUs
    tools         compilers and what else native code is built with
    device_code   which GPUs a library has code for, read from the file
    libraries     the plugin library for TensorRT and the CUDA library for ONNX Runtime
    tensorrt      TensorRT, TensorRT-RTX and the lean runtime, and what their registries hold
    machine       all of it
    abilities     what follows: what can be done here, and what would close each gap

Nothing here imports a runtime or torch but what `ask` calls, in processes of their own.
"""
