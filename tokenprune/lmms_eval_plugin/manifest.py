"""What lmms-eval reads of the plug-in before anybody asks for it; it imports nothing heavy."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("tokenprune", chat_class_path="tokenprune.lmms_eval_plugin.model.TokenPrune")
