"""Measures pysendmail against Debian's Postfix on this machine: `./dev bench [WORKLOAD...]`, as root.

Debians are made with debootstrap (tests/e2e/debian.py), one with our package, one with Postfix and the settings of
postfix.cf, and three with other mail systems for the workloads that ask for them; they are booted side by side by
systemd-nspawn, each with a cable to a network of its own, on an ext4 of their own. In each round each workload runs on
one after the other, so that what else the machine does meets all. Only ratios of one run mean anything.
docs/PERFORMANCE.md says how to read them.

    __main__.py   the command line; rounds
    hosts.py      the Debians: how each is installed, tuned, started, and told what a mailbox is
    peers.py      Exim, OpenSMTPD and sendmail, and which workloads they are in
    network.py    the other end of the cable: smtp-source and smtp-sink of Debian's postfix package
    disk.py       the file system
    accounts.py   CPU time, memory and mailboxes of a booted Debian, read from outside
    driver.py     runs inside a Debian: submits messages as an ordinary user
    flood.py      runs inside a Debian: many clients, and hostile ones
    workloads.py  what is done and what is measured; a workload is one function in its table WORKLOADS
    smtp.py       those that come by SMTP or go to another host
    size.py       how much of everything
    figures.py    medians, ratios, ranges, goals
"""
