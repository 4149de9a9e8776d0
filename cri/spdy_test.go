package cri

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/moby/spdystream/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// frames is a SPDY client that sends frames in ways that no library would.
type frames struct {
	t    *testing.T
	conn *net.TCPConn
	*spdy.Framer
}

// speak connects to a URL with the given protocol.
func speak(t *testing.T, address, protocol string) *frames {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", u.Host, wait())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(wait()))
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol} {
		request.Header.Set(key, value)
	}
	if err := request.Write(conn); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	answer, err := http.ReadResponse(reader, request)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %s", answer.Status)
	}
	framer, err := spdy.NewFramer(conn, reader)
	if err != nil {
		t.Fatal(err)
	}
	return &frames{t: t, conn: conn.(*net.TCPConn), Framer: framer}
}

func (f *frames) write(frame spdy.Frame) {
	f.t.Helper()
	if err := f.WriteFrame(frame); err != nil {
		f.t.Fatal(err)
	}
}

// open opens a stream with the given header pairs.
func (f *frames) open(id spdy.StreamId, headers ...string) {
	f.t.Helper()
	h := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	f.write(&spdy.SynStreamFrame{StreamId: id, Headers: h})
}

// openPair opens the two streams of a forwarding; id + 2 is the data stream.
func (f *frames) openPair(id spdy.StreamId, port string) {
	f.t.Helper()
	f.open(id, portforward.StreamType, portforward.StreamTypeError, portforward.PortHeader, port)
	f.open(id+2, portforward.StreamType, portforward.StreamTypeData, portforward.PortHeader, port)
}

// until reads until ok returns true for a frame; it returns false if the server closes the
// connection first.
func (f *frames) until(ok func(spdy.Frame) bool) bool {
	f.t.Helper()
	for {
		frame, err := f.ReadFrame()
		if errors.Is(err, io.EOF) {
			return false
		}
		if err != nil {
			f.t.Fatal(err)
		}
		if ok(frame) {
			return true
		}
	}
}

// forwardURL requests a port-forward URL of the pod.
func (e *env) forwardURL() string {
	e.t.Helper()
	answer, err := e.client().PortForward(e.t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		e.t.Fatal(err)
	}
	return answer.GetUrl()
}

// A client may disconnect at any time, even between opening a stream and the reply. The leak check
// at the end of the test finds goroutines that still wait for it.
func TestClientsThatGoAtOnceLeaveNothing(t *testing.T) {
	for name, leave := range map[string]func(*frames) error{
		"reset":     func(f *frames) error { return errors.Join(f.conn.SetLinger(0), f.conn.Close()) },
		"close":     func(f *frames) error { return f.conn.Close() },
		"half":      func(f *frames) error { return f.conn.CloseWrite() },
		"with word": func(f *frames) error { return f.WriteFrame(&spdy.GoAwayFrame{}) },
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, nil)
			for range 20 {
				f := speak(t, e.exec(&runtimeapi.ExecRequest{Cmd: []string{"both"}, Stdin: true, Stdout: true, Stderr: true}), "v4.channel.k8s.io")
				for i, kind := range []string{"error", "stdin", "stdout", "stderr"} {
					f.open(spdy.StreamId(2*i+1), remotecommand.StreamType, kind)
				}
				if err := leave(f); err != nil {
					t.Error(err)
				}
				f = speak(t, e.forwardURL(), portforward.ProtocolV1Name)
				for i := range 8 {
					f.openPair(spdy.StreamId(4*i+1), "8080")
				}
				f.write(&spdy.DataFrame{StreamId: 3, Data: []byte("hello\n")})
				if err := leave(f); err != nil {
					t.Error(err)
				}
			}
			for _, kind := range []string{"exec", "port-forward"} {
				eventually(t, "the end of each "+kind, func() bool { // below 0: no session was ever started
					return metric(t, e, "mica_cri_sessions_running", "kind", kind) <= 0
				})
			}
		})
	}
}

// Data for a forwarding that has ended is dropped and does not block the rest of the connection.
func TestEndedForwardingsHoldNothingUp(t *testing.T) {
	e := start(t, nil)
	f := speak(t, e.forwardURL(), portforward.ProtocolV1Name)
	f.openPair(1, "8080")
	f.write(&spdy.DataFrame{StreamId: 3, Data: []byte("first\n")})
	var answer strings.Builder
	ended := func(id spdy.StreamId) func(spdy.Frame) bool {
		return func(frame spdy.Frame) bool {
			data, ok := frame.(*spdy.DataFrame)
			if ok {
				answer.Write(data.Data)
			}
			return ok && data.StreamId == id && data.Flags&spdy.DataFlagFin != 0
		}
	}
	if !f.until(ended(3)) {
		t.Fatal("the server ends the connection")
	}
	for range 200 { // more than the library keeps in a queue
		f.write(&spdy.DataFrame{StreamId: 3, Data: []byte("more\n")})
	}
	// Streams 3 and 13 share one of the library's five workers.
	f.openPair(11, "8081")
	f.write(&spdy.DataFrame{StreamId: 13, Data: []byte("second\n")})
	if !f.until(ended(13)) {
		t.Fatal("the server ends the connection")
	}
	if want := "8080: first\n8081: second\n"; answer.String() != want {
		t.Errorf("got %q, want %q", answer.String(), want)
	}
}

func TestStreamsThatNobodyAskedForAreReset(t *testing.T) {
	e := start(t, nil)
	exec := speak(t, e.exec(&runtimeapi.ExecRequest{Cmd: []string{"which"}, Stdout: true}), "v4.channel.k8s.io")
	for i, kind := range []string{"stdin", "error", "error", "none"} { // only the first "error" is expected
		exec.open(spdy.StreamId(2*i+1), remotecommand.StreamType, kind)
	}
	ports := speak(t, e.forwardURL(), portforward.ProtocolV1Name)
	for i, headers := range [][2]string{{"0", "data"}, {"65536", "data"}, {"x", "error"}, {"80", "none"}} {
		ports.open(spdy.StreamId(2*i+1), portforward.PortHeader, headers[0], portforward.StreamType, headers[1])
	}
	for who, missing := range map[*frames]int{exec: 3, ports: 4} {
		if !who.until(func(frame spdy.Frame) bool {
			if _, ok := frame.(*spdy.RstStreamFrame); ok {
				missing--
			}
			return missing == 0
		}) {
			t.Error("the connection ends")
		}
	}
	// The command still starts once its streams are complete.
	exec.open(9, remotecommand.StreamType, "stdout")
	if !exec.until(func(frame spdy.Frame) bool {
		data, ok := frame.(*spdy.DataFrame)
		return ok && strings.HasPrefix(string(data.Data), "in=false out=true")
	}) {
		t.Error("the command did not run")
	}
}

func TestMissingStreamsAreNotWaitedForLong(t *testing.T) {
	e := start(t, func(o *Options) { o.Streaming.CreationTimeout = 50 * time.Millisecond })
	exec := speak(t, e.exec(&runtimeapi.ExecRequest{Cmd: []string{"both"}, Stdout: true, Stderr: true}), "v4.channel.k8s.io")
	exec.open(1, remotecommand.StreamType, "error")
	if exec.until(func(frame spdy.Frame) bool { _, ok := frame.(*spdy.GoAwayFrame); return ok }) &&
		exec.until(func(spdy.Frame) bool { return false }) {
		t.Error("the connection goes on")
	}
	// A forwarding that is never completed does not end the others.
	ports := speak(t, e.forwardURL(), portforward.ProtocolV1Name)
	ports.open(1, portforward.PortHeader, "8080", portforward.StreamType, portforward.StreamTypeError)
	if !ports.until(func(frame spdy.Frame) bool {
		data, ok := frame.(*spdy.DataFrame)
		return ok && data.StreamId == 1 && data.Flags&spdy.DataFlagFin != 0
	}) {
		t.Error("the connection ends")
	}
	ports.openPair(3, "8080")
	ports.write(&spdy.DataFrame{StreamId: 5, Data: []byte("hello\n")})
	if !ports.until(func(frame spdy.Frame) bool {
		data, ok := frame.(*spdy.DataFrame)
		return ok && data.StreamId == 5 && string(data.Data) == "8080: hello\n"
	}) {
		t.Error("no answer")
	}
}

// Unread input of a command does not cost its client the output and the exit code. It would if the
// connection were closed with unread data.
func TestUnreadInputCostsNoOutput(t *testing.T) {
	e := start(t, nil)
	for i := range 20 {
		f := speak(t, e.exec(&runtimeapi.ExecRequest{Cmd: []string{"exit"}, Stdin: true, Stdout: true}), "v4.channel.k8s.io")
		for i, kind := range []string{"error", "stdin", "stdout"} {
			f.open(spdy.StreamId(2*i+1), remotecommand.StreamType, kind)
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for range 100 {
				if f.WriteFrame(&spdy.DataFrame{StreamId: 3, Data: make([]byte, 8192)}) != nil {
					return
				}
			}
		}()
		var status strings.Builder
		f.until(func(frame spdy.Frame) bool {
			if data, ok := frame.(*spdy.DataFrame); ok && data.StreamId == 1 {
				status.Write(data.Data)
			}
			return false
		})
		if !strings.Contains(status.String(), "exit code 7") {
			t.Fatalf("client %d got status %q", i, status.String())
		}
		_ = f.conn.Close()
		<-sent
	}
}

func TestOnlySPDYIsSpoken(t *testing.T) {
	e := start(t, nil)
	for name, headers := range map[string]http.Header{
		"no upgrade":     {},
		"other protocol": {"Connection": {"Upgrade"}, "Upgrade": {"h2c"}},
		"no version":     {"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}},
		"other version":  {"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"v9"}},
	} {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.forwardURL(), nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header = headers
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
			answer, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = answer.Body.Close() }()
			if answer.StatusCode/100 != 4 {
				t.Error(fmt.Errorf("got %s", answer.Status))
			}
		})
	}
}
