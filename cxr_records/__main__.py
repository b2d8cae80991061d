"""`python -m cxr_records` is `cxr-records`."""

from cxr_records.cli import main

if __name__ == "__main__":
    main()
