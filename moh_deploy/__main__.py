"""`python -m moh_deploy` is `moh-deploy`."""

from moh_deploy.cli import main

if __name__ == "__main__":
    main()
