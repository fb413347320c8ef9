"""The demo."""
from pathlib import Path
async def tell_story(folder, say): return 0
