import logging
import warnings

import pytest

from moh_deploy.frontend.quiet import muted, no_warnings


def test_loggers_are_muted_below_a_level_and_as_before_afterwards(caplog):
    logger = logging.getLogger("quiet.test")
    logger.setLevel(logging.INFO)
    with muted("quiet.test", below=logging.ERROR):
        logger.warning("muted")
        logger.error("said")
    logger.info("said afterwards")
    assert [record.message for record in caplog.records] == ["said", "said afterwards"]


def test_warnings_are_muted_and_as_before_afterwards():
    with no_warnings():
        warnings.warn("muted", stacklevel=1)
    with pytest.warns(UserWarning, match="said"):
        warnings.warn("said", stacklevel=1)
