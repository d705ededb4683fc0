"""Trains, evaluates, samples or predicts from one config: python launch.py --config=configs/vae.py

Flags -> config -> pipeline -> loop; nothing else. `--config.KEY=VALUE` overrides any key of the config.
"""

import sys

from umbrella.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
