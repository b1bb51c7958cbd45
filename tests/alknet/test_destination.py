"""What PEER means, and which keys prove that it is the one that was meant."""

import os
from pathlib import Path

import pytest

from alknet.config.create import create_home
from alknet.config.home import Home
from alknet.destination import find_destination, private_key
