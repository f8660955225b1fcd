"""`python -m fss_svf VERB ...`"""

from fss_svf.cli import main

if __name__ == "__main__":
    main()
