"""Several machines, tried on one: `make several-machines`, as root on Linux.

Two sets of namespaces stand for two machines, `box` with the servers and `gpu` with a worker. Each has its own network
address, processes, host name and disk; nothing but a cable (a veth pair) joins them. The commands of docs/operations.md
and docs/scaling.md are run there as people type them, and what they promise is checked. Everything that is made ends
with the two first processes of the machines; nothing outside of them is changed.
"""
