"""`make bench`: all benchmarks, one after the other."""

from benchmarks import bench_gateway, bench_streams

if __name__ == "__main__":
    bench_gateway.main()
    bench_streams.main()
