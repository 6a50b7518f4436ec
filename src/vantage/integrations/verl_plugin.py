"""How does verl get Vantage's estimators without a line of code? By importing this module, which registers them:

VERL_USE_EXTERNAL_MODULES=vantage.integrations.verl_plugin python -m verl.trainer.main_ppo ...
"""

from __future__ import annotations

from vantage.integrations.verl import register

REGISTERED = register()
