package cri

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"runtime/debug"
	gometrics "runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/moby/spdystream/spdy"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// mostHeld is the number of bytes that one hostile client may make the server hold.
const mostHeld = 24 << 20

// held returns a function that stops the measurement and returns the peak growth of what the garbage
// collector found in use.
func held(t *testing.T) func() int64 {
	t.Helper()
	read := func() int64 {
		s := []gometrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
		gometrics.Read(s)
		return int64(s[0].Value.Uint64() + s[1].Value.Uint64())
	}
	// The value is of the last collection.
	collect := debug.SetGCPercent(5)
	t.Cleanup(func() { debug.SetGCPercent(collect) })
	runtime.GC()
	base, peak := read(), int64(0)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			peak = max(peak, read()-base)
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return sync.OnceValue(func() int64 {
		close(stop)
		<-stopped
		return peak
	})
}

// flood writes pieces until the server takes no more for a second or ends the connection. It
// returns the number of bytes that the server took, at most limit.
func flood(conn net.Conn, limit int64, piece func(i int) []byte) (taken int64) {
	for i := 0; taken < limit; i++ {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := conn.Write(piece(i))
		taken += int64(n)
		if err != nil {
			break
		}
	}
	return taken
}

// dataFrame is a frame of SPDY in its wire form.
func dataFrame(stream uint32, data []byte) []byte {
	head := binary.BigEndian.AppendUint32(nil, stream)
	head = binary.BigEndian.AppendUint32(head, uint32(len(data)))
	return append(head, data...)
}

// controlFrame is a control frame of SPDY in its wire form.
func controlFrame(kind uint16, payload []byte) []byte {
	head := binary.BigEndian.AppendUint16(nil, 0x8003)
	head = binary.BigEndian.AppendUint16(head, kind)
	head = binary.BigEndian.AppendUint32(head, uint32(len(payload)))
	return append(head, payload...)
}

// sleeper opens a session whose command reads no input.
func (e *env) sleeper() *frames {
	e.t.Helper()
	f := speak(e.t, e.exec(&runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdin: true, Stdout: true}), "v4.channel.k8s.io")
	for i, kind := range []string{"error", "stdin", "stdout"} {
		f.open(spdy.StreamId(2*i+1), remotecommand.StreamType, kind)
	}
	f.until(func(frame spdy.Frame) bool { _, ok := frame.(*spdy.DataFrame); return ok })
	return f
}

// What a client can make the server hold does not depend on the sizes and the number of its frames.
func TestHostileFramesAreNotHeld(t *testing.T) {
	large, small := make([]byte, 1<<24-1), bytes.Repeat(dataFrame(3, []byte("x")), 1<<12)
	for name, piece := range map[string][]byte{
		"large frames of unread input": dataFrame(3, large),
		"large frames of an output":    dataFrame(1, large),
		"small frames of unread input": small,
		"frames of an unknown stream":  dataFrame(101, large),
		"large settings":               controlFrame(4, append([]byte{0, 0x10, 0, 0}, large[:8<<20]...)),
		"large pings":                  controlFrame(6, append([]byte{0, 0, 0, 1}, large[:8<<20]...)),
		"unknown control frames":       controlFrame(77, large[:8<<20]),
		"pings without reading":        bytes.Repeat(controlFrame(6, []byte{0, 0, 0, 1}), 1<<12),
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, nil)
			f := e.sleeper()
			peak := held(t)
			taken := flood(f.conn, 512<<20, func(int) []byte { return piece })
			time.Sleep(100 * time.Millisecond)
			t.Logf("took %d MB, held %d MB", taken>>20, peak()>>20)
			if peak() > mostHeld {
				t.Errorf("the server holds %d MB", peak()>>20)
			}
		})
	}
}

// A client that opens the same stream again and again, and does not read, is disconnected.
func TestDuplicateStreams(t *testing.T) {
	e := start(t, nil)
	f := e.sleeper()
	before := runtime.NumGoroutine()
	_ = f.conn.SetDeadline(time.Now().Add(wait()))
	for range 200_000 {
		if f.WriteFrame(&spdy.SynStreamFrame{StreamId: 1, Headers: http.Header{"n": {"v"}}}) != nil {
			break
		}
	}
	if now := runtime.NumGoroutine(); now > before+100 {
		t.Errorf("%d goroutines, and %d before", now, before)
	}
	if f.until(func(spdy.Frame) bool { return false }) {
		t.Error("the connection goes on")
	}
}

// Streams of huge or very many headers end the connection.
func TestHostileHeaders(t *testing.T) {
	for name, headers := range map[string]http.Header{
		"a long value": {"x": {strings.Repeat("v", 1<<20)}},
		"a long name":  {strings.Repeat("n", 1<<20): {"v"}},
		"many headers": func() http.Header {
			h := http.Header{}
			for i := range 900 {
				h[fmt.Sprint("h", i)] = []string{strings.Repeat("v", 1<<10)}
			}
			return h
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, nil)
			f := speak(t, e.forwardURL(), portforward.ProtocolV1Name)
			peak := held(t)
			for i := range 200 {
				if f.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(2*i + 1), Headers: headers}) != nil {
					break
				}
			}
			_ = f.conn.CloseWrite()
			_ = f.conn.SetReadDeadline(time.Now().Add(wait()))
			_, _ = io.Copy(io.Discard, f.conn)
			if got := peak(); got > mostHeld {
				t.Errorf("the server holds %d MB", got>>20)
			}
		})
	}
}

// A client that opens streams without end gets the ones beyond a limit reset, also if it opens only
// halves of forwardings.
func TestManyStreams(t *testing.T) {
	e := start(t, nil)
	f := speak(t, e.forwardURL(), portforward.ProtocolV1Name)
	peak := held(t)
	const opened = 5000
	go func() {
		for i := range opened {
			headers := http.Header{}
			headers.Set(portforward.StreamType, portforward.StreamTypeError)
			headers.Set(portforward.PortHeader, "8080")
			headers.Set(portforward.PortForwardRequestIDHeader, fmt.Sprint(i))
			if f.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(2*i + 1), Headers: headers}) != nil {
				return
			}
		}
		_ = f.WriteFrame(&spdy.PingFrame{Id: 1})
	}()
	refused := 0
	f.until(func(frame spdy.Frame) bool {
		switch frame.(type) {
		case *spdy.RstStreamFrame:
			refused++
		case *spdy.PingFrame:
			return true
		}
		return false
	})
	t.Logf("%d of %d streams refused, held %d MB", refused, opened, peak()>>20)
	if got := peak(); got > mostHeld {
		t.Errorf("the server holds %d MB", got>>20)
	}
	if refused < opened/2 {
		t.Errorf("%d of %d streams are refused", refused, opened)
	}
}

// Terminal sizes are small; a stream of them that is one endless value is given up.
func TestEndlessTerminalSize(t *testing.T) {
	e := start(t, nil)
	f := speak(t, e.exec(&runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdin: true, Stdout: true, Tty: true}), "v4.channel.k8s.io")
	for i, kind := range []string{"error", "stdin", "stdout", "resize"} {
		f.open(spdy.StreamId(2*i+1), remotecommand.StreamType, kind)
	}
	f.until(func(frame spdy.Frame) bool { _, ok := frame.(*spdy.DataFrame); return ok })
	peak := held(t)
	start, more := dataFrame(7, []byte(`"`)), dataFrame(7, bytes.Repeat([]byte("x"), 16<<10))
	taken := flood(f.conn, 128<<20, func(i int) []byte {
		if i == 0 {
			return start
		}
		return more
	})
	if got := peak(); got > mostHeld {
		t.Errorf("the server took %d MB and holds %d MB", taken>>20, got>>20)
	}
}

// A WebSocket message is held as a whole, so its size is limited.
func TestLargeMessagesOfWebSocket(t *testing.T) {
	for _, protocol := range []string{"v5.channel.k8s.io", "base64.channel.k8s.io"} {
		t.Run(protocol, func(t *testing.T) {
			e := start(t, nil)
			address := e.exec(&runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdin: true, Stdout: true})
			conn := e.webSocket(address, protocol)
			peak := held(t)
			message := bytes.Repeat([]byte{'0'}, 31<<20)
			if protocol[0] == 'v' {
				message[0] = channelStdin
			}
			_ = conn.SetDeadline(time.Now().Add(wait()))
			conn.PayloadType = websocket.BinaryFrame
			_, _ = conn.Write(message)
			_, err := io.Copy(io.Discard, conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the server goes on with the session")
			}
			if own := 3 * int64(len(message)); peak() > mostHeld+own { // as the client masks it
				t.Errorf("the server holds %d MB", (peak()-own)>>20)
			}
		})
	}
}

// webSocket connects to a URL.
func (e *env) webSocket(address, protocol string) *websocket.Conn {
	e.t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		e.t.Fatal(err)
	}
	u.Scheme = "ws"
	c, err := websocket.NewConfig(u.String(), "http://localhost/")
	if err != nil {
		e.t.Fatal(err)
	}
	c.Protocol = []string{protocol}
	conn, err := websocket.DialConfig(c)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Connections without a request of a URL that was issued are closed: when they are slow, when they
// send too much, and after the answer.
func TestConnectionsWithoutAURLAreClosed(t *testing.T) {
	e := start(t, nil)
	address := e.server.StreamAddress().String()
	for name, talk := range map[string]func(net.Conn){
		"silent":       func(net.Conn) {},
		"slow headers": func(c net.Conn) { _, _ = io.WriteString(c, "GET /exec/x HTTP/1.1\r\nHost: x\r\nX-A: ") },
		"slow body": func(c net.Conn) {
			_, _ = io.WriteString(c, "POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nslow")
		},
		"kept alive": func(c net.Conn) { _, _ = io.WriteString(c, "GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n") },
		"guessed": func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /exec/guess HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		},
		"large headers": func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /exec/x HTTP/1.1\r\nHost: x\r\n")
			for range 1000 {
				if _, err := io.WriteString(c, "X-A: "+strings.Repeat("a", 1000)+"\r\n"); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			talk(conn)
			_ = conn.SetReadDeadline(time.Now().Add(headerTimeout + wait()))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection stays open")
			}
		})
	}
}

// Only so many URLs wait for their clients. Used ones do not count.
func TestURLsAreLimited(t *testing.T) {
	e := start(t, nil)
	for range maxTickets + 100 {
		u, err := url.Parse(e.forwardURL())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := e.server.streams.tickets.take(u.Path); !ok {
			t.Fatal("a new URL is not valid")
		}
	}
	for range maxTickets {
		e.forwardURL()
	}
	_, err := e.client().PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "more than 1000") {
		t.Errorf("one URL too many: %v", err)
	}
}

// The command lines of waiting URLs have a limit as well.
func TestRequestsOfURLsAreLimited(t *testing.T) {
	e := start(t, nil)
	large := &runtimeapi.ExecRequest{ContainerId: "c", Stdout: true, Cmd: slices.Repeat([]string{strings.Repeat("x", 1<<20)}, 6)}
	for range 5 {
		e.exec(large)
	}
	_, err := e.client().Exec(t.Context(), large)
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "exceed") {
		t.Errorf("a request too many: %v", err)
	}
}

func TestTooManyPortsAreRefused(t *testing.T) {
	e := start(t, nil)
	_, err := e.client().PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: make([]int32, 10_000)})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "more than 127") {
		t.Errorf("many ports: %v", err)
	}
}

// Data frames arrive as they were sent, whatever their size.
func TestFrameReaderKeepsData(t *testing.T) {
	var wire bytes.Buffer
	framer, err := spdy.NewFramer(&wire, nil)
	if err != nil {
		t.Fatal(err)
	}
	sizes := []int{0, 1, maxDataFrame - 1, maxDataFrame, maxDataFrame + 1, 5*maxDataFrame + 7, 1 << 20}
	for i, size := range sizes {
		headers := http.Header{"k": {fmt.Sprint(i)}}
		stream := spdy.StreamId(2*i + 1)
		for _, frame := range []spdy.Frame{
			&spdy.SynStreamFrame{StreamId: stream, Headers: headers},
			&spdy.DataFrame{StreamId: stream, Flags: spdy.DataFlagFin, Data: bytes.Repeat([]byte{byte(i)}, size)},
			&spdy.PingFrame{Id: uint32(i + 1)},
		} {
			if err := framer.WriteFrame(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
	received, err := spdy.NewFramerWithOptions(io.Discard, &frameReader{from: iotest.OneByteReader(&wire)}, frameLimits()...)
	if err != nil {
		t.Fatal(err)
	}
	got, fins, opened := map[spdy.StreamId]int{}, 0, 0
	for {
		frame, err := received.ReadFrame()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch f := frame.(type) {
		case *spdy.SynStreamFrame:
			opened++
		case *spdy.DataFrame:
			if bytes.ContainsFunc(f.Data, func(r rune) bool { return r != rune(f.StreamId/2) }) {
				t.Errorf("stream %d got other data", f.StreamId)
			}
			got[f.StreamId] += len(f.Data)
			if f.Flags&spdy.DataFlagFin != 0 {
				fins++
				if want := sizes[f.StreamId/2]; got[f.StreamId] != want {
					t.Errorf("stream %d ended after %d of %d bytes", f.StreamId, got[f.StreamId], want)
				}
			}
		}
	}
	if opened != len(sizes) || fins != len(sizes) {
		t.Errorf("%d streams were opened and %d ended, of %d", opened, fins, len(sizes))
	}
}

// The older port-forward protocol has two channels for each port, which begin with its number.
func TestForwardOverChannels(t *testing.T) {
	for _, protocol := range []string{"v4.channel.k8s.io", "v4.base64.channel.k8s.io"} {
		t.Run(protocol, func(t *testing.T) {
			e := start(t, nil)
			answer, err := e.client().PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{8080, 1}})
			if err != nil {
				t.Fatal(err)
			}
			conn := e.webSocket(answer.GetUrl(), protocol)
			_ = conn.SetDeadline(time.Now().Add(wait()))
			encoded := strings.Contains(protocol, "base64")
			var sent any = append([]byte{0}, "hello\n"...)
			if encoded {
				sent = "0" + base64.StdEncoding.EncodeToString([]byte("hello\n"))
			}
			if err := websocket.Message.Send(conn, sent); err != nil {
				t.Fatal(err)
			}
			var got [4]string
			for {
				var message []byte
				if websocket.Message.Receive(conn, &message) != nil {
					break
				}
				number, data := message[0], message[1:]
				if encoded {
					number -= '0'
					if data, err = base64.StdEncoding.DecodeString(string(data)); err != nil {
						t.Fatal(err)
					}
				}
				got[number] += string(data)
			}
			port1 := "\x01\x00"
			want := [4]string{"\x90\x1f8080: hello\n", "\x90\x1f", port1, port1 + "forwarding to port 1 of pod p: connection refused"}
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// A client that resets its connection, with input that nothing reads, does not keep its session. One that
// closes it has still data to send, so that the kernel resets the connection only after some minutes.
func TestClientsThatDieUnreadEndTheirSessions(t *testing.T) {
	e := start(t, nil)
	e.server.streams.listener.probe.Store(int64(50 * time.Millisecond))
	f := e.sleeper()
	piece := dataFrame(3, make([]byte, 1<<20))
	flood(f.conn, 64<<20, func(int) []byte { return piece })
	time.Sleep(10 * 50 * time.Millisecond)
	if e.runtime.execHasEnded() {
		t.Error("the session ended while its client was there")
	}
	if err := errors.Join(f.conn.SetLinger(0), f.conn.Close()); err != nil {
		t.Error(err)
	}
	eventually(t, "the end of the session", func() bool { return e.runtime.execHasEnded() })
}
