"""Engines of TensorRT and TensorRT-RTX: one path for both, over the interface that they share.

    flavour             what is different of the two, and the plugin library
    profiles            sizes that an engine is built for, by named dimensions
    build_plan          what was asked for, and the file of --timing-cache
    preflight           refuses, before any build, what the plugins do not take: all of it at once
    candidates          what may run the attention of each layer, and which of it does
    candidate_networks  their networks, of one node each; which runs where nothing can be timed
    engine_graph        the graph that is built, and what of it runs by kernels
    build_process       starts and ends the process that builds, hears its steps
    messages            what the two processes tell each other
    worker              that process: its program, and how it times networks
    builder             in it: parse, read back what the parser made, build
    engine_dir          what is written: model.engine, engine.json, build.log, the plugin library
    loading             an engine in this process; engine_contexts runs it, models opens it

TensorRT is imported in the worker only: an abort of the native library is an error message there.

An add-on: pyproject.toml registers what of it the core runs, by entry points (ADR 96).
"""
