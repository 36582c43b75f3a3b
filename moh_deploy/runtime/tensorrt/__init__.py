"""Engines of TensorRT and TensorRT-RTX: one path for both, over the interface that they share.

    flavour         what is different: module, compute capabilities, timing cache, soname
    profiles        sizes that an engine is built for, by named dimensions
    plugin_library  finds libmoh_plugin.so and asks it what it is
    preflight       refuses, before any build, what the plugins do not take: all of it at once
    rejection       one thing that cannot be built
    candidates      what may run the attention of each layer, and which of it does
    estimates       which, where nothing can be timed
    candidate_networks  the network of each candidate, of one node; a process that times them
    network_timing  in that process: builds them, and times them in turns
    device_work     memory, a stream and a clock of the GPU, for that
    build_process   starts and ends the process that builds, hears its steps
    messages        what the two processes tell each other
    worker          that process: its program
    network         in it: parse, read back what the parser made
    builder         in it: configuration, profiles, the build itself
    timing_cache    the file of --timing-cache, and which machine it is of
    engine_dir      what is written: model.engine, engine.json, build.log and the plugin library

TensorRT is imported in the worker only: an abort of the native library is an error message there.

An add-on: pyproject.toml registers what of it the core runs, by entry points (ADR 96).
"""
