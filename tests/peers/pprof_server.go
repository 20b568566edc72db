// A Go service with net/http/pprof: what the clients of marple's endpoint are used to.
package main

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"time"
)

var kept [][]byte

func burn() {
	for n := 0; ; n++ {
		if n%1000000 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

func main() {
	for range 64 {
		kept = append(kept, make([]byte, 1<<20))
	}
	go burn()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(listener.Addr())
	fmt.Fprintln(os.Stderr, http.Serve(listener, nil))
}
