"""Programs that load what may be missing or broken: `-m moh_deploy.machine.programs NAME`."""
