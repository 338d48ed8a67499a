"""What the checks of `doctor --security` found."""

SECRET = "pLaNt3d-secret-value"


def by_status(checks, status):
    return [check for check in checks if check.status == status]


def failures(checks):
    """All that failed, in a line; each has a remedy, and none is more than a line."""
    found = by_status(checks, "fail")
    assert all(check.remedy and "\n" not in check.found + check.remedy for check in found)
    return " | ".join(check.found for check in found)
