"""What tests and benchmarks share. Tests import helpers from here; conftest.py files hold fixtures only.

Inputs
    photos.py             generated pictures and JPEGs
    weights.py            small published weights, the tiny model that tests serve, copies under another version
    configs.py            Serve configs with changed values
    logged.py             a prediction log of any size
    jobs.py               jobs in a job store, without HTTP
    faults.py             full disks, power cuts, and a record of what reached the disk
Time
    clock.py              a clock that a test sets, and an event loop that never waits
    polling.py            wait for something that another process does
A service in this process
    local_service.py      the real stages behind the real API, without Ray
A service in processes of its own
    running.py            ``make run`` on free ports
    services.py           the service with everything turned on, and the same one stopped in the middle of its work
    trace_collector.py    receives its traces
    processes.py          all processes of a started program: CPU time, memory, none left behind
    bad_day.py            updates and killed processes
Load
    http_client.py        an HTTP client that takes little CPU time
    load.py               closed and open loop, summary; ``python -m tests.support.load``
    constant_load.py      a steady load with the outcome of each request
    overload.py           ten times the capacity; ``python -m tests.support.overload``
    tiny_server.py        a server whose responses a test writes byte by byte
    package_index.py      a package index with wheels that are empty
    readme.py             the commands that README.md shows
Images by URL
    image_host.py         a web server with images, whose responses a test writes byte by byte
    web.py                a fetcher whose names lead where a test says

Fuzz inputs are in tests/fuzz. ``tests.support.paths.ROOT`` is the checkout.
"""
