"""What every test runs under: each call into `ddpm` is checked against its annotations, shapes included."""

import jaxtyping

# The hook changes modules as they are imported, so it must stand before the first test module imports ddpm.
jaxtyping.install_import_hook("ddpm", "beartype.beartype")
