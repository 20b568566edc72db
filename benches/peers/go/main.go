// The workloads of benches/trace in Go: CPU time per operation with the flight recorder running, divided
// by that without it. Rounds are interleaved, and medians are shown.
//
//	go run main.go [--quick]
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/trace"
	"slices"
	"sort"
	"sync"
	"syscall"
)

var rounds = 9

func cpu() float64 {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return float64(usage.Utime.Nano() + usage.Stime.Nano())
}

func pingPong(operations int) {
	pings, pongs := make(chan int, 1), make(chan int, 1)
	go func() {
		for n := range pings {
			pongs <- n
		}
		close(pongs)
	}()
	for n := 0; n < operations/2; n++ {
		pings <- n
		<-pongs
	}
	close(pings)
}

func spawnMany(operations int) {
	var group sync.WaitGroup
	for n := 0; n < operations/100; n++ {
		group.Add(100)
		for m := 0; m < 100; m++ {
			go group.Done()
		}
		group.Wait()
	}
}

func tcpEcho(operations int) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		stream, _ := listener.Accept()
		buffer := make([]byte, 64)
		for {
			if _, err := io.ReadFull(stream, buffer); err != nil {
				return
			}
			stream.Write(buffer)
		}
	}()
	stream, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		panic(err)
	}
	buffer := make([]byte, 64)
	for n := 0; n < operations; n++ {
		stream.Write(buffer)
		io.ReadFull(stream, buffer)
	}
	stream.Close()
	listener.Close()
}

var sink uint64

func computingPolls(operations int) {
	var group sync.WaitGroup
	for t := 0; t < 4; t++ {
		group.Add(1)
		go func() {
			defer group.Done()
			sum := uint64(1)
			for n := 0; n < operations/4; n++ {
				for m := uint64(0); m < 4000; m++ {
					sum *= m | 1
				}
				runtime.Gosched()
			}
			if sum == 7 {
				sink = sum
			}
		}()
	}
	group.Wait()
}

func measure(run func(int), operations int) float64 {
	run(operations / 10)
	before := cpu()
	run(operations)
	return (cpu() - before) / float64(operations)
}

func median(values []float64) float64 {
	sort.Float64s(values)
	return values[len(values)/2]
}

func main() {
	runtime.GOMAXPROCS(2)
	if slices.Contains(os.Args, "--quick") {
		rounds /= 3
	}
	workloads := []struct {
		name       string
		run        func(int)
		operations int
	}{
		{"ping-pong", pingPong, 300000},
		{"spawn many", spawnMany, 300000},
		{"TCP echo", tcpEcho, 15000},
		{"computing polls", computingPolls, 20000},
	}
	for _, w := range workloads {
		var plains, controls, ratios []float64
		for round := 0; round <= rounds; round++ {
			plain := measure(w.run, w.operations)
			control := measure(w.run, w.operations)
			recorder := trace.NewFlightRecorder(trace.FlightRecorderConfig{})
			if err := recorder.Start(); err != nil {
				panic(err)
			}
			recording := measure(w.run, w.operations)
			recorder.Stop()
			if round > 0 {
				plains = append(plains, plain)
				controls = append(controls, control/plain)
				ratios = append(ratios, recording/plain)
			}
		}
		fmt.Printf("%-44s %7.0f ns\n", w.name+": Go, plain", median(plains))
		fmt.Printf("%-44s %9.3f\n", w.name+": Go, control over plain", median(controls))
		fmt.Printf("%-44s %9.3f\n", w.name+": Go, FlightRecorder over plain", median(ratios))
	}
}
