package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

func TestExecSync(t *testing.T) {
	f := start(t)
	id := f.start(f.runPod(f.podConfig()), f.containerConfig(busyboxImage, "sleep", "1000"))
	stdout, stderr, err := f.Runtime.ExecSync(f.ctx, id, []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, time.Minute)
	var code interface{ ExitStatus() int }
	if !errors.As(err, &code) || code.ExitStatus() != 3 {
		t.Errorf("error is %v, want exit status 3", err)
	}
	if string(stdout) != "out\n" || string(stderr) != "err\n" {
		t.Errorf("output is %q and %q", stdout, stderr)
	}
	if _, _, err := f.Runtime.ExecSync(f.ctx, id, []string{"/no/such"}, time.Minute); err == nil {
		t.Error("ExecSync of a missing program succeeds")
	}
}

func TestExecSyncTimeoutKillsAll(t *testing.T) {
	f := start(t)
	id := f.start(f.runPod(f.podConfig()), f.containerConfig(busyboxImage, "sleep", "1000"))
	begin := time.Now()
	_, _, err := f.Runtime.ExecSync(f.ctx, id, []string{"sh", "-c", "sleep 4321 & sleep 4322"}, time.Second)
	if err == nil || time.Since(begin) > 30*time.Second {
		t.Errorf("exec with a time-out of 1 s: error %v after %s", err, time.Since(begin))
	}
	f.eventually("the exec's processes have ended", func() bool {
		return f.exec(id, "sh", "-c", "pgrep -f '[s]leep 432' || echo none") == "none\n"
	})
}

// A process that keeps an exec's output open after the exec neither delays the call nor costs the
// daemon a descriptor, a goroutine or a process.
func TestExecSyncDrainIsBounded(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	id := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	f.exec(id, "true")
	before, err := f.Census(f.ctx)
	f.no(err)
	begin := time.Now()
	const count = 5
	for range count {
		if got := f.exec(id, "sh", "-c", "sleep 4321 & echo started"); got != "started\n" {
			t.Errorf("exec returned %q", got)
		}
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("%d execs took %s", count, took)
	}
	f.eventually("only the processes remain", func() bool {
		census, err := f.Census(f.ctx)
		f.no(err)
		leaks := census.Leaks(before)
		return len(leaks) == count && !slices.ContainsFunc(leaks, func(leak string) bool {
			return !strings.HasPrefix(leak, "process: ") || !strings.HasSuffix(leak, " sleep")
		})
	})
	f.no(f.Runtime.StopContainer(f.ctx, id, 0)) // which ends the processes
	f.eventually("the processes of the execs have ended", func() bool {
		census, err := f.Census(f.ctx)
		f.no(err)
		return len(census["process"]) == 0
	})
}

func TestExecSyncOutputIsCapped(t *testing.T) {
	f := start(t)
	id := f.start(f.runPod(f.podConfig()), f.containerConfig(busyboxImage, "sleep", "1000"))
	const most = 16<<20 - 4<<10 // the output that fits into an answer of 16 MiB
	for script, want := range map[string][2]int{
		"head -c 17000000 /dev/zero >&2":                             {0, most},
		"head -c 17000000 /dev/zero; head -c 17000000 /dev/zero >&2": {most / 2, most / 2},
		"head -c 1000000 /dev/zero; head -c 17000000 /dev/zero >&2":  {1_000_000, most - 1_000_000},
		"head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2":   {1_000_000, 1_000_000},
	} {
		stdout, stderr, err := f.Runtime.ExecSync(f.ctx, id, []string{"sh", "-c", script}, 30*time.Second)
		if err != nil || len(stdout) != want[0] || len(stderr) != want[1] {
			t.Errorf("%s: %d and %d bytes, want %v: %v", script, len(stdout), len(stderr), want, err)
		}
	}
}

// streams are what one end of a streaming call sends and has received.
type streams struct {
	stdin          io.Reader
	stdout, stderr received
	tty            bool
	resize         remotecommand.TerminalSizeQueue
}

// received collects what one stream has received.
type received struct {
	buffer bytes.Buffer       // not embedded, because its ReadFrom would bypass Write
	each   func(soFar string) // called with every piece; may be nil
}

func (r *received) String() string { return r.buffer.String() }

func (r *received) Write(p []byte) (int, error) {
	n, err := r.buffer.Write(p)
	if r.each != nil {
		r.each(r.String())
	}
	return n, err
}

// stream runs a streaming call with the given protocol.
func (f *fixture) stream(protocol, address string, s *streams) error {
	ctx, cancel := context.WithTimeout(f.ctx, time.Minute)
	defer cancel()
	target, err := url.Parse(address)
	f.no(err)
	var executor remotecommand.Executor
	if protocol == "websocket" {
		// The newest protocol between API server and runtime; newer ones are only between client
		// and API server.
		executor, err = remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, address, "v4.channel.k8s.io")
	} else {
		executor, err = remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, target)
	}
	f.no(err)
	options := remotecommand.StreamOptions{Stdin: s.stdin, Stdout: &s.stdout, Tty: s.tty, TerminalSizeQueue: s.resize}
	if !s.tty {
		options.Stderr = &s.stderr
	}
	return executor.StreamWithContext(ctx, options)
}

func TestExecStream(t *testing.T) {
	f := start(t)
	id := f.start(f.runPod(f.podConfig()), f.containerConfig(busyboxImage, "sleep", "1000"))
	for _, protocol := range []string{"spdy", "websocket"} {
		t.Run(protocol, func(t *testing.T) {
			response, err := f.Runtime.Exec(f.ctx, &runtimeapi.ExecRequest{
				ContainerId: id, Cmd: []string{"sh", "-c", "read line; echo $line; echo err >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true,
			})
			f.no(err)
			s := &streams{stdin: strings.NewReader("some input\n")}
			err = f.stream(protocol, response.Url, s)
			var exit utilexec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 5 {
				t.Errorf("error is %v, want exit code 5", err)
			}
			if s.stdout.String() != "some input\n" || s.stderr.String() != "err\n" {
				t.Errorf("output is %q and %q", s.stdout.String(), s.stderr.String())
			}
		})
	}
}

// sizes is a queue of one terminal size.
type sizes struct{ left []remotecommand.TerminalSize }

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.left) == 0 {
		return nil
	}
	next := s.left[0]
	s.left = s.left[1:]
	return &next
}

// Terminals work over both protocols, and get the client's size, for exec and for attach.
func TestTerminals(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	shell := []string{"sh", "-c", "read go; test -t 0 && echo terminal; while [ \"$(stty size 2>/dev/null)\" != '33 111' ]; do sleep 0.05; done; stty size"}
	id := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	for _, protocol := range []string{"spdy", "websocket"} {
		t.Run("exec by "+protocol, func(t *testing.T) {
			response, err := f.Runtime.Exec(f.ctx, &runtimeapi.ExecRequest{ContainerId: id, Tty: true, Stdin: true, Stdout: true, Cmd: shell})
			f.no(err)
			f.checkTerminal(protocol, response.Url)
		})
		t.Run("attach by "+protocol, func(t *testing.T) {
			config := f.containerConfig(busyboxImage, shell...)
			config.Stdin, config.Tty = true, true
			id := f.start(p, config)
			response, err := f.Runtime.Attach(f.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true})
			f.no(err)
			f.checkTerminal(protocol, response.Url)
			if ended := f.await(id); ended.ExitCode != 0 {
				t.Errorf("container ended with %d", ended.ExitCode)
			}
		})
	}
}

func (f *fixture) checkTerminal(protocol, address string) {
	f.t.Helper()
	// The input remains open until the process has ended, like a terminal's.
	typed, keyboard := io.Pipe()
	defer keyboard.Close()
	go func() { _, _ = keyboard.Write([]byte("go\n")) }()
	s := &streams{stdin: typed, tty: true, resize: &sizes{left: []remotecommand.TerminalSize{{Width: 111, Height: 33}}}}
	if err := f.stream(protocol, address, s); err != nil {
		f.t.Errorf("%s: %v", protocol, err)
	}
	if got := s.stdout.String(); got != "go\r\nterminal\r\n33 111\r\n" {
		f.t.Errorf("%s: terminal printed %q", protocol, got)
	}
}

func TestAttach(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "while read line; do echo got $line; done; echo end of input")
	config.Stdin, config.StdinOnce = true, true
	id := f.start(p, config)
	response, err := f.Runtime.Attach(f.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	f.no(err)
	s := &streams{stdin: strings.NewReader("one\ntwo\n")}
	f.no(f.stream("spdy", response.Url, s))
	if got := s.stdout.String(); got != "got one\ngot two\nend of input\n" {
		t.Errorf("attached client received %q", got)
	}
	// With stdin_once, the end of the client's input is the end of the container's.
	if got := f.await(id); got.ExitCode != 0 {
		t.Errorf("exit code is %d", got.ExitCode)
	}
	if got := text(f.log(p, config)); got != "got one\ngot two\nend of input\n" {
		t.Errorf("log is %q", got)
	}
}

func TestAttachTerminal(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "read line; echo got $line")
	config.Stdin, config.Tty = true, true
	id := f.start(p, config)
	response, err := f.Runtime.Attach(f.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true})
	f.no(err)
	// The input remains open: after its end, the client would wait for a second only.
	in, typed := io.Pipe()
	defer func() { _ = typed.Close() }()
	go func() { _, _ = io.WriteString(typed, "hello\n") }()
	s := &streams{stdin: in, tty: true}
	f.no(f.stream("websocket", response.Url, s))
	if got := s.stdout.String(); !strings.Contains(got, "got hello\r\n") {
		t.Errorf("attached terminal received %q", got)
	}
	f.await(id)
}

// Without stdin_once, the container's input outlives its clients.
func TestStdinOutlivesClient(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "while read line; do echo got $line; [ $line = last ] && exit 3; done; echo end of input")
	config.Stdin = true
	id := f.start(p, config)
	for _, line := range []string{"first", "second", "last"} {
		response, err := f.Runtime.Attach(f.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
		f.no(err)
		typed, keyboard := io.Pipe()
		go func() { _, _ = keyboard.Write([]byte(line + "\n")) }()
		s := &streams{stdin: typed}
		s.stdout.each = func(soFar string) {
			if strings.HasSuffix(soFar, "\n") {
				_ = keyboard.Close() // the client disconnects once it has its answer
			}
		}
		f.no(f.stream("spdy", response.Url, s))
		if got := s.stdout.String(); got != "got "+line+"\n" {
			t.Errorf("client that sent %s received %q", line, got)
		}
	}
	if got := f.await(id); got.ExitCode != 3 {
		t.Errorf("exit code is %d, want 3", got.ExitCode)
	}
	if got := text(f.log(p, config)); got != "got first\ngot second\ngot last\n" {
		t.Errorf("log is %q", got)
	}
}

// An attached client that does not read must not stop the container's log.
func TestSlowAttachDoesNotHoldTheLog(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	const count = 100_000
	config := f.containerConfig(toolsImage, "sh", "-c", "until [ -e /dev/shm/go ]; do echo waiting >&2; sleep 0.1; done; exec /bin/lines 100000")
	id := f.start(p, config)
	response, err := f.Runtime.Attach(f.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true, Stderr: true})
	f.no(err)
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	target, err := url.Parse(response.Url)
	f.no(err)
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, target)
	f.no(err)
	ended := make(chan struct{})
	waiting, errs := io.Pipe()
	go func() {
		defer close(ended)
		defer func() { _ = errs.Close() }()
		_ = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stuck{ctx.Done()}, Stderr: errs}) // ends by cancel
	}()
	if _, err := waiting.Read(make([]byte, 1)); err != nil { // the client is attached
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, waiting) }()
	f.no(os.WriteFile(filepath.Join(f.State, "pods", p.id, "shm", "go"), nil, 0o644))
	f.await(id)
	printed := slices.DeleteFunc(f.log(p, config), func(line logLine) bool { return line.stream != "stdout" })
	checkNumbered(t, printed, count)
	cancel()
	<-ended
}

// stuck is a writer that blocks until it is released.
type stuck struct{ release <-chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	<-s.release
	return len(p), nil
}

func TestPortForward(t *testing.T) {
	f := start(t)
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pod": runtimeapi.NamespaceMode_POD, "host": runtimeapi.NamespaceMode_NODE} {
		t.Run(name, func(t *testing.T) {
			config := f.podConfig()
			options := &runtimeapi.NamespaceOption{Network: mode}
			config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}
			p := f.runPod(config)
			port := f.freePort()
			script := fmt.Sprintf("echo hello >/tmp/index.html; exec httpd -f -h /tmp -p 127.0.0.1:%d", port)
			server := f.containerConfig(busyboxImage, "sh", "-c", script)
			server.Linux.SecurityContext.NamespaceOptions = options
			id := f.start(p, server)
			f.eventually("the server answers inside the pod", func() bool {
				_, _, err := f.Runtime.ExecSync(f.ctx, id, []string{"wget", "-q", "-O", "-", fmt.Sprintf("http://127.0.0.1:%d", port)}, 5*time.Second)
				return err == nil
			})
			transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
			f.no(err)
			f.forward(spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, f.portForward(p, port)), port)
			dialer, err := portforward.NewSPDYOverWebsocketDialerForStreaming(f.portForward(p, port), &rest.Config{})
			f.no(err)
			f.forward(dialer, port)
		})
	}
}

// portForward returns the URL for forwarding a port of the pod.
func (f *fixture) portForward(p pod, port int) *url.URL {
	f.t.Helper()
	response, err := f.Runtime.PortForward(f.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{int32(port)}})
	f.no(err)
	target, err := url.Parse(response.Url)
	f.no(err)
	return target
}

// forward forwards a local port to the pod's and fetches a page through it.
func (f *fixture) forward(dialer httpstream.Dialer, port int) {
	f.t.Helper()
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewForStreaming(dialer, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	f.no(err)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		f.t.Fatalf("forward port: %v", err)
	}
	ports, err := forwarder.GetPorts()
	f.no(err)
	for range 3 {
		if body, err := get(f.ctx, fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local)); err != nil || body != "hello\n" {
			f.t.Errorf("forwarded page is %q, %v", body, err)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		f.t.Errorf("end of the forwarding: %v", err)
	}
}

// get fetches a page on a separate connection.
func get(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// freePort returns a port that nothing else on the machine uses during the test.
func (f *fixture) freePort() int {
	f.t.Helper()
	if len(f.ports) == 0 {
		f.t.Fatal("the test has used all ports of its slot")
	}
	port := f.ports[0]
	f.ports = f.ports[1:]
	return port
}
