"""What the wandb commands print."""

import pytest

from tokenprune.errors import ConfigError
from tokenprune.wandb_commands import unsent


def test_nothing_to_send(tmp_path):
    with pytest.raises(ConfigError, match="holds no offline W&B runs"):
        unsent(tmp_path)
