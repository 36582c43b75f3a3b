"""Programs that load what may be missing or broken: `python -m moh_deploy.probes.programs NAME`."""
