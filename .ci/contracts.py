"""Contracts on imports that import-linter does not include; pyproject.toml lists them."""

from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class NoParentInitContract(Contract):
    """No module imports the `__init__.py` of a folder that it lies in.

    Such an `__init__.py` imports the modules below it, so each of these imports closes a cycle.
    `acyclic_siblings` compares the children of a folder with each other. It does not check the
    `__init__.py` of the folder.
    """

    type_name = "no_parent_import"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Kept if no module directly imports a folder that contains it; lazy imports count."""
        upward = sorted(
            (importer, imported)
            for importer in graph.modules
            for imported in graph.find_modules_directly_imported_by(importer)
            if importer.startswith(f"{imported}.")
        )
        details: list[dict[str, Any]] = [
            detail
            for importer, imported in upward
            for detail in graph.get_import_details(importer=importer, imported=imported)
        ]
        return ContractCheck(kept=not upward, metadata={"details": details})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each import that breaks the contract."""
        for detail in check.metadata["details"]:
            output.print_error(
                f"- {detail['importer']} imports {detail['imported']} (l. {detail['line_number']})"
            )
