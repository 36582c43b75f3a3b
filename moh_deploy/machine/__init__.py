"""Find out what is on this machine: one kind of thing a file, facts and no opinion.

    ask           calls a function in a process of its own; its crash is an answer
    packages      Python packages, and the versions that moh-deploy wants
    cpu           ONNX Runtime, OpenVINO, function bodies and CPU kernels: one operator, run
    attention_run that operator
    tools         compilers and what else native code is built with
    gpu           NVIDIA's driver, GPUs, and native libraries with code for them
    tensorrt      TensorRT, TensorRT-RTX and the lean runtime, and what their registries hold
    machine       all of it, what follows for what can be done here, and what would close each gap

Nothing here imports a runtime or torch but what `ask` calls, in processes of their own.
"""
