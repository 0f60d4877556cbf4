"""`make bench`: all benchmarks, one after the other; about seven minutes."""

from benchmarks import bench_choices, bench_gateway, bench_profile, bench_streams

if __name__ == "__main__":
    bench_gateway.main()
    bench_streams.main()
    bench_choices.main()
    bench_profile.main()
