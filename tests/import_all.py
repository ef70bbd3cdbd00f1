"""Import every module of the installed package, without its extras."""

import importlib
import importlib.resources
import pkgutil

import tinyr1

names = [m.name for m in pkgutil.walk_packages(tinyr1.__path__, "tinyr1.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
recipes = importlib.resources.files("tinyr1.train") / "recipes"
assert (recipes / "math.toml").is_file()
print(f"{len(names)} modules imported from {tinyr1.__path__[0]}")
