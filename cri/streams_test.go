package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// transports are the protocols of streaming clients.
func transports() map[string]func(t *testing.T, address string) remotecommand.Executor {
	return map[string]func(*testing.T, string) remotecommand.Executor{
		"spdy": func(t *testing.T, address string) remotecommand.Executor {
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
			if err != nil {
				t.Fatal(err)
			}
			return e
		},
		"websocket v4": webSocket("v4.channel.k8s.io"),
		"websocket v5": webSocket("v5.channel.k8s.io"), // crictl's protocol
	}
}

func webSocket(protocol string) func(t *testing.T, address string) remotecommand.Executor {
	return func(t *testing.T, address string) remotecommand.Executor {
		e, err := remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, address, protocol)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
}

// onEach runs a test with each transport, on its own server.
func onEach(t *testing.T, test func(t *testing.T, e *env, dial func(address string) remotecommand.Executor)) {
	for name, transport := range transports() {
		t.Run(name, func(t *testing.T) {
			e := start(t, nil)
			test(t, e, func(address string) remotecommand.Executor { return transport(t, address) })
		})
	}
}

// exec requests a URL through the kubelet's client.
func (e *env) exec(req *runtimeapi.ExecRequest) string {
	e.t.Helper()
	req.ContainerId = "c"
	answer, err := e.client().Exec(e.t.Context(), req)
	if err != nil {
		e.t.Fatal(err)
	}
	return answer.GetUrl()
}

// sizes is a terminal that the user resizes.
type sizes chan *remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize { return <-s }

func TestExecCopiesInput(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		// Over WebSocket before protocol v5 a client cannot close its input alone, so
		// the command must not wait for that: it copies a known number of bytes.
		input := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		var out bytes.Buffer
		err := dial(e.exec(&runtimeapi.ExecRequest{Cmd: []string{"copy", fmt.Sprint(len(input))}, Stdin: true, Stdout: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: bytes.NewReader(input), Stdout: &out})
		if err != nil || !bytes.Equal(out.Bytes(), input) {
			t.Errorf("got %d bytes, %v", out.Len(), err)
		}
	})
}

func TestExecKeepsOutputsApart(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		var out, errs bytes.Buffer
		err := dial(e.exec(&runtimeapi.ExecRequest{Cmd: []string{"both"}, Stdout: true, Stderr: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
		if err != nil || out.String() != "to stdout" || errs.String() != "to stderr" {
			t.Errorf("got %q, %q, %v", &out, &errs, err)
		}
	})
}

func TestExecTellsTheExitCode(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		err := dial(e.exec(&runtimeapi.ExecRequest{Cmd: []string{"exit"}, Stdout: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
		var exit utilexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 7 {
			t.Errorf("got %v, want exit code 7", err)
		}
	})
}

func TestExecTellsFailures(t *testing.T) {
	for cmd, want := range map[string]string{"fail": "no such file", "panic": "exec panics"} {
		onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
			err := dial(e.exec(&runtimeapi.ExecRequest{Cmd: []string{cmd}, Stdout: true})).
				StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}

func TestExecResizesTheTerminal(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		queue := make(sizes, 2)
		queue <- &remotecommand.TerminalSize{Width: 80, Height: 24}
		queue <- &remotecommand.TerminalSize{Width: 132, Height: 50}
		close(queue)
		var out bytes.Buffer
		err := dial(e.exec(&runtimeapi.ExecRequest{Cmd: []string{"sizes"}, Stdin: true, Stdout: true, Tty: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: strings.NewReader(""), Stdout: &out, Tty: true, TerminalSizeQueue: queue,
			})
		if want := "tty=true 80x24\ntty=true 132x50\n"; err != nil || out.String() != want {
			t.Errorf("got %q, %v", &out, err)
		}
	})
}

func TestExecEndsWithItsClient(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		started := writerFunc(func(p []byte) (int, error) {
			cancel()
			return len(p), nil
		})
		err := dial(e.exec(&runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdout: true})).
			StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: started})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("client: %v", err)
		}
		eventually(t, "the end of the session", func() bool { return e.runtime.execHasEnded() })
	})
}

func TestExecEndsWithTheServer(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		started := make(chan struct{})
		out := writerFunc(func(p []byte) (int, error) {
			close(started)
			return len(p), nil
		})
		ended := make(chan error, 1)
		executor := dial(e.exec(&runtimeapi.ExecRequest{Cmd: []string{"sleep"}, Stdout: true}))
		go func() {
			ended <- executor.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdout: out})
		}()
		<-started
		e.stop()
		if !e.runtime.execHasEnded() {
			t.Error("the session goes on")
		}
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the client thinks that the command succeeded")
			}
		case <-time.After(wait()):
			t.Error("the client got no status")
		}
	})
}

func TestAttach(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		for input, want := range map[string]string{"hello\n": "HELLO\n", "panic\n": ""} {
			answer, err := e.client().Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = dial(answer.GetUrl()).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(input), Stdout: &out})
			if out.String() != want || (want == "") != (err != nil) {
				t.Errorf("%q: got %q, %v", input, &out, err)
			}
		}
	})
}

func TestPortForward(t *testing.T) {
	dialers := map[string]func(*testing.T, *url.URL) httpstream.Dialer{"SPDY": dialSPDY, "WebSocket": dialTunnel}
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			e := start(t, nil)
			// A client closes its connection after the first port that fails, so each port uses its
			// own connection.
			for port, want := range map[uint16]string{8080: "8080: hello\n", 1: "", 13: ""} {
				local, stop := e.forward(dial(t, e.portForward()), port)
				if got := ask(t, local, "hello\n"); got != want {
					t.Errorf("port %d answers %q, want %q", port, got, want)
				}
				stop()
			}
			if n := metric(t, e, "mica_cri_panics_total"); n != 1 {
				t.Errorf("mica_cri_panics_total = %v", n)
			}
			eventually(t, "the end of the sessions", func() bool { return metric(t, e, "mica_cri_sessions_running", "kind", "port-forward") == 0 })
		})
	}
}

// portForward returns a URL for port forwarding.
func (e *env) portForward() *url.URL {
	e.t.Helper()
	answer, err := e.client().PortForward(e.t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		e.t.Fatal(err)
	}
	u, err := url.Parse(answer.GetUrl())
	if err != nil {
		e.t.Fatal(err)
	}
	return u
}

func dialSPDY(t *testing.T, u *url.URL) httpstream.Dialer {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
}

func dialTunnel(t *testing.T, u *url.URL) httpstream.Dialer {
	t.Helper()
	dialer, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return dialer
}

// An unknown tunnel protocol is rejected before the connection is upgraded.
func TestUnknownTunnelIsRefused(t *testing.T) {
	e := start(t, nil)
	u := e.portForward()
	u.Scheme = "ws"
	c, err := websocket.NewConfig(u.String(), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	c.Protocol = []string{"SPDY/3.1+other.k8s.io"}
	if _, err := c.DialContext(t.Context()); err == nil || !strings.Contains(err.Error(), "bad status") {
		t.Errorf("dialled with %v", err)
	}
}

// forward forwards a local port to a port of the pod, like kubectl.
func (e *env) forward(dialer httpstream.Dialer, port uint16) (local uint16, stop func()) {
	e.t.Helper()
	end, ready, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf(":%d", port)}, end, ready, io.Discard, io.Discard)
	if err != nil {
		e.t.Fatal(err)
	}
	go func() {
		_ = f.ForwardPorts() // the test sees a port's error in its answer
		close(ended)
	}()
	select {
	case <-ready:
	case <-ended:
		e.t.Fatal("the forwarding ended at once")
	}
	ports, err := f.GetPorts()
	if err != nil {
		e.t.Fatal(err)
	}
	return ports[0].Local, func() {
		close(end)
		<-ended
	}
}

// ask sends a line to a local port and returns everything that comes back.
func ask(t *testing.T, port uint16, line string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), wait())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(wait()))
	if _, err := io.WriteString(conn, line); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

func TestStreamsOfNothingAreRefused(t *testing.T) {
	e := start(t, nil)
	client := e.client()
	for name, tc := range map[string]struct {
		call func() error
		want codes.Code
	}{
		"exec in no container": {func() error {
			_, err := client.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: "x", Cmd: []string{"y"}, Stdout: true})
			return err
		}, codes.NotFound},
		"exec without streams": {func() error {
			_, err := client.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"y"}})
			return err
		}, codes.InvalidArgument},
		"attach to no container": {func() error {
			_, err := client.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: "x", Stdout: true})
			return err
		}, codes.NotFound},
		"terminal and stderr": {func() error {
			_, err := client.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: "c", Tty: true, Stdout: true, Stderr: true})
			return err
		}, codes.InvalidArgument},
		"forward to no pod": {func() error {
			_, err := client.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "x"})
			return err
		}, codes.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.call(); status.Code(err) != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestURLsServeOnce(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		address := e.exec(&runtimeapi.ExecRequest{Cmd: []string{"both"}, Stdout: true, Stderr: true})
		for i, wantErr := range []bool{false, true} {
			err := dial(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
			if (err != nil) != wantErr {
				t.Errorf("use %d: %v", i+1, err)
			}
		}
	})
}

// A stream that the client did not request is nil, not a stream at EOF.
func TestStreamsAreNilUnlessAskedFor(t *testing.T) {
	onEach(t, func(t *testing.T, e *env, dial func(string) remotecommand.Executor) {
		var out bytes.Buffer
		err := dial(e.exec(&runtimeapi.ExecRequest{Cmd: []string{"which"}, Stdout: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out})
		if want := "in=false out=true err=false resize=false"; err != nil || out.String() != want {
			t.Errorf("got %q, %v, want %q", &out, err, want)
		}
	})
}

// Clients can close stdin where the transport supports it: SPDY, and WebSocket since v5.
func TestInputEnds(t *testing.T) {
	for _, name := range []string{"spdy", "websocket v5"} {
		t.Run(name, func(t *testing.T) {
			e := start(t, nil)
			var out bytes.Buffer
			err := transports()[name](t, e.exec(&runtimeapi.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true})).
				StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("to the end"), Stdout: &out})
			if err != nil || out.String() != "to the end" {
				t.Errorf("got %q, %v", &out, err)
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
