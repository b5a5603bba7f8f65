package testbed

import (
	"io"
	"net"
)

// Serve hands the connections that come in to handle, each in a goroutine of its own, and
// closes them when it returns. It ends, and the listener is closed, with the test.
func Serve(t T, l net.Listener, handle func(net.Conn)) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
}

// Echo sends back what comes in.
func Echo(conn net.Conn) { io.Copy(conn, conn) } // an error ends it like any other end

// Relay returns what joins each connection to one that dial makes.
func Relay(dial func() (net.Conn, error)) func(net.Conn) {
	return func(near net.Conn) {
		far, err := dial()
		if err != nil {
			return
		}
		defer far.Close()
		go func() {
			io.Copy(far, near)
			far.Close()
		}()
		io.Copy(near, far)
	}
}
