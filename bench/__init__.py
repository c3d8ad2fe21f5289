"""Measures pysendmail against Debian's Postfix on this machine: `./dev bench [WORKLOAD...]`, as root.

Two Debians are made with debootstrap (tests/e2e/debian.py), one with our package, one with Postfix and the settings of
postfix.cf, and booted side by side by systemd-nspawn with a loopback interface and no other; spool, mailboxes and homes
lie on the file system of /var/tmp. In each round each workload runs on one host and then on the other, so that what
else the machine does meets both. Only ratios of one run mean anything. docs/PERFORMANCE.md says how to read them.

    __main__.py   the command line; rounds
    hosts.py      the two Debians: how each is installed, tuned, started, and told what a mailbox is
    accounts.py   CPU time, memory and mailboxes of a booted Debian, read from outside
    driver.py     runs inside a Debian: submits messages as an ordinary user
    workloads.py  what is done and what is measured; a workload is one function in its table WORKLOADS
    figures.py    medians, ratios, ranges, goals

SMTP and relay workloads belong into a module of their own beside workloads.py, with their lines in WORKLOADS. Their
load comes from smtp-source and smtp-sink of Debian's postfix package, which Host.tool runs in the network of either
host, from a root file system of its own.
"""
