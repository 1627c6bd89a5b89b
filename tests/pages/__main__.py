"""`make docs`: writes the generated parts of the pages anew."""

from __future__ import annotations

from tests.pages.pages import MANUAL, ROOT, manual_page, pages, rendered

if not MANUAL.exists() or MANUAL.read_text() != manual_page():
    MANUAL.write_text(manual_page())
    print(f"{MANUAL.relative_to(ROOT)}: written")
for page in pages():
    old = page.read_text()
    new = rendered(old)
    if new != old:
        page.write_text(new)
        print(f"{page.relative_to(ROOT)}: written")
