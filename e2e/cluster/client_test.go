package cluster_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/cluster"
)

// output collects the output of a running command.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// has returns a check that the output contains text.
func (o *output) has(text string) func(context.Context) error {
	return func(context.Context) error {
		if s := o.String(); !strings.Contains(s, text) {
			return fmt.Errorf("the output is %q", s)
		}
		return nil
	}
}

// command prepares kubectl in the namespace. It is killed when the test ends.
func (f *fixture) command(arguments ...string) (*exec.Cmd, *output) {
	command := f.KubectlCommand(f.ctx, append([]string{"--namespace", f.namespace}, arguments...)...)
	out := &output{}
	command.Stdout, command.Stderr = out, out
	return command, out
}

// begin starts kubectl with a standard input, and returns a function that waits for its end.
func (f *fixture) begin(arguments ...string) (in io.WriteCloser, out *output, wait func() error) {
	f.t.Helper()
	command, out := f.command(arguments...)
	in, err := command.StdinPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		f.t.Fatal(err)
	}
	return in, out, command.Wait
}

// terminal has the two ends of a pseudo-terminal.
func terminal(t *testing.T) (own, other *os.File) {
	t.Helper()
	own, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = own.Close() })
	number, err := unix.IoctlGetInt(int(own.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(own.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	other, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	return own, other
}

// interactive starts kubectl on a terminal of 50 columns.
func (f *fixture) interactive(arguments ...string) (keys *os.File, screen *output, command *exec.Cmd) {
	f.t.Helper()
	own, other := terminal(f.t)
	resize(f.t, own, 50)
	command, screen = f.command(arguments...)
	command.Stdin, command.Stdout, command.Stderr = other, other, other
	if err := command.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() { _, _ = io.Copy(screen, own) }() // ends when the terminal is closed
	return own, screen, command
}

func resize(t *testing.T, terminal *os.File, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) enter(keys io.Writer, line string) {
	f.t.Helper()
	if _, err := io.WriteString(keys, line+"\n"); err != nil {
		f.t.Fatal(err)
	}
}

func TestLogs(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sh, -c, "n=$(cat /count/n || echo 0); echo $((n+1)) >/count/n; echo life $n; test $n -gt 0 || exit 1; for i in 1 2 3; do sleep 1; echo line $i; echo problem $i >&2; done; exec sleep infinity"]
		volumeMounts: [{name: count, mountPath: /count}]
	- name: other
		image: `+cluster.Busybox+`
		command: [sh, -c, "echo other; exec sleep infinity"]
	volumes: [{name: count, emptyDir: {}}]
`)
	f.awaitLog("life 1", "main", "-c", "main")
	_, out, wait := f.begin("logs", "--follow", "main", "-c", "main")
	f.await("followed log", out.has("line 3"))
	if log := f.kubectl("logs", "--previous", "main", "-c", "main"); !strings.Contains(log, "life 0\n") {
		t.Errorf("log of the previous life is %q", log)
	}
	if log := f.kubectl("logs", "main", "-c", "main", "--tail=2"); strings.Count(log, "\n") != 2 {
		t.Errorf("two last lines are %q", log)
	}
	stamped := f.kubectl("logs", "main", "-c", "main", "--timestamps", "--tail=1")
	at, _, _ := strings.Cut(stamped, " ")
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
		t.Errorf("line with a time is %q: %v", stamped, err)
	}
	if log := f.kubectl("logs", "main", "--all-containers", "--prefix"); !strings.Contains(log, "[pod/main/other] other\n") {
		t.Errorf("log of all containers is %q", log)
	}
	// The follower ends when the container ends.
	f.delete("main")
	if err := wait(); err != nil {
		t.Errorf("follower: %v: %s", err, out)
	}
}

// No line is lost while the kubelet rotates a log, and a client that follows the log reaches its
// end. (A slow follower misses lines in rotated files.)
func TestLogRotation(t *testing.T) {
	f := start(t)
	const lines = 60000
	f.pod("main", fmt.Sprintf(`
	containers:
	- name: main
		image: %s
		# 9 MB, over some 12 s.
		command: [sh, -c, "i=0; while [ $i -lt %d ]; do i=$((i+1)); printf '%%07d %%090d\\n' $i 0; [ $((i %% 5000)) = 0 ] && sleep 1; done; echo done; exec sleep infinity"]
`, cluster.Busybox, lines))
	pod := f.awaitPod("main", ready)
	_, out, wait := f.begin("logs", "--follow", "main")
	f.await("the last line", func(ctx context.Context) error {
		if strings.HasSuffix(out.String(), "done\n") {
			return nil
		}
		return fmt.Errorf("the output has %d bytes", len(out.String()))
	})
	n := f.node(pod)
	// The current file's name sorts before the names of the rotated files, which end in a time.
	text, err := n.Run(f.ctx, "sh", "-ec", "cd "+n.Disk()+"/pods/"+f.namespace+"_main_*/main; ls | grep -c . >&2; for l in 0.log.*; do zcat -f $l; done; cat 0.log")
	if err != nil {
		t.Fatal(err)
	}
	files, text, _ := strings.Cut(text, "\n")
	if files < "2" {
		t.Errorf("the log has %s files, want rotated ones", files)
	}
	for i := 1; i <= lines; i++ {
		line, rest, _ := strings.Cut(text, "\n")
		if want := fmt.Sprintf(" stdout F %07d %090d", i, 0); !strings.HasSuffix(line, want) {
			t.Fatalf("line %d is %.150q", i, line)
		}
		text = rest
	}
	f.delete("main")
	if err := wait(); err != nil {
		t.Errorf("follower: %v", err)
	}
}

// node returns the pod's node.
func (f *fixture) node(pod corev1.Pod) *cluster.Node {
	f.t.Helper()
	for _, n := range f.Nodes {
		if n.Name == pod.Spec.NodeName {
			return n
		}
	}
	f.t.Fatalf("pod %s is on %q", pod.Name, pod.Spec.NodeName)
	return nil
}

func TestExec(t *testing.T) {
	f := start(t)
	f.pod("main", client)
	f.awaitPod("main", ready)
	in, out, wait := f.begin("exec", "--stdin", "main", "--", "sh", "-c", "cat; echo problem >&2; exit 7")
	f.enter(in, "hello")
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	err := wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(out.String(), "hello\n") || !strings.Contains(out.String(), "problem\n") {
		t.Errorf("%v: %s", err, out)
	}

	keys, screen, command := f.interactive("exec", "-it", "main", "--", "sh")
	// The client may send the size when the shell already runs.
	f.await("size of the terminal", func(ctx context.Context) error {
		f.enter(keys, "stty size")
		return screen.has("24 50")(ctx)
	})
	resize(t, keys, 71)
	if err := command.Process.Signal(unix.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	f.await("changed size of the terminal", func(ctx context.Context) error {
		f.enter(keys, "stty size")
		return screen.has("24 71")(ctx)
	})
	f.enter(keys, "exit 4")
	if err := command.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 4 {
		t.Errorf("%v: %s", err, screen)
	}
}

func TestAttach(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers:
	- {name: main, image: "`+cluster.Busybox+`", stdin: true, command: [sh, -c, "while read line; do echo got $line; done; exec sleep infinity"]}
	- {name: shell, image: "`+cluster.Busybox+`", stdin: true, tty: true, command: [sh]}
`)
	f.awaitPod("main", ready)
	in, out, wait := f.begin("attach", "main", "-c", "main", "--stdin")
	f.enter(in, "hello")
	f.await("an answer", out.has("got hello"))
	f.awaitLog("got hello", "main", "-c", "main")
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}

	keys, screen, command := f.interactive("attach", "main", "-c", "shell", "-it")
	f.await("a shell", func(ctx context.Context) error {
		f.enter(keys, "echo $((40+2))")
		return screen.has("42")(ctx)
	})
	f.delete("main")
	_ = command.Wait() // its error is that the pod was deleted
	_ = wait()
}

// A pod exists as long as the command that made it.
func TestRunAndRemove(t *testing.T) {
	f := start(t)
	out, err := f.KubectlInput(f.ctx, "one\ntwo\n", "--namespace", f.namespace, "run", "main", "--rm", "--stdin", "--quiet",
		"--restart=Never", "--image="+cluster.Busybox, "--command", "--", "wc", "-l")
	if err != nil || !strings.HasPrefix(out, "2\n") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestCopy(t *testing.T) {
	f := start(t)
	f.pod("main", client)
	f.awaitPod("main", ready)
	dir := t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
	if err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "there/sub"), 0o755),
		os.WriteFile(filepath.Join(dir, "there/sub/big"), big, 0o644),
		os.WriteFile(filepath.Join(dir, "there/empty"), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	f.kubectl("cp", filepath.Join(dir, "there"), "main:/tmp/there")
	if sum := f.exec("main", "sha256sum </tmp/there/sub/big"); !strings.HasPrefix(sum, fmt.Sprintf("%x", sha256.Sum256(big))) {
		t.Errorf("copied file has the sum %s", sum)
	}
	f.kubectl("cp", "main:/tmp/there", filepath.Join(dir, "back"))
	back, err := os.ReadFile(filepath.Join(dir, "back/sub/big"))
	if err != nil || !bytes.Equal(back, big) {
		t.Errorf("%d bytes came back, %v", len(back), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "back/empty")); err != nil {
		t.Error(err)
	}
}

func TestPortForward(t *testing.T) {
	f := start(t)
	server := `
	containers:
	- name: main
		image: ` + cluster.Agnhost + `
		args: [netexec, --http-port=%[1]s]
		readinessProbe: {tcpSocket: {port: %[1]s}, periodSeconds: 1}
`
	f.pod("main", fmt.Sprintf(server, "8080"))
	f.pod("host", "\thostNetwork: true\n"+fmt.Sprintf(server, "18080"))
	for pod, port := range map[string]string{"main": "8080", "host": "18080"} {
		f.awaitPod(pod, ready)
		_, out, _ := f.begin("port-forward", "pod/"+pod, ":"+port)
		var local int
		f.await("a forwarded port", func(context.Context) error {
			_, err := fmt.Sscanf(out.String(), "Forwarding from 127.0.0.1:%d", &local)
			return err
		})
		for range 3 {
			answer, err := f.fetch(f.ctx, f.Nodes[0], fmt.Sprintf("http://127.0.0.1:%d/echo?msg=hello", local))
			if err != nil || answer != "hello" {
				t.Errorf("%s: %q, %v: %s", pod, answer, err, out)
			}
		}
	}
}

// An ephemeral container joins the target's PID namespace and has tools that the target lacks.
func TestDebug(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers: [{name: main, image: "`+cluster.Agnhost+`", args: [netexec, --http-port=8080]}]
`)
	f.awaitPod("main", ready)
	keys, screen, command := f.interactive("debug", "main", "-it", "--image="+cluster.Busybox, "--container=look",
		"--target=main", "--profile=general", "--", "sh")
	f.await("a shell", func(ctx context.Context) error {
		f.enter(keys, "echo $((40+2))")
		return screen.has("42")(ctx)
	})
	f.enter(keys, "ps; wget -q -O- localhost:8080/echo?msg=same-network")
	f.await("the target's processes", screen.has("/agnhost netexec"))
	f.await("the target's network", screen.has("same-network"))
	f.enter(keys, "exit")
	_ = command.Wait()
	pod := f.awaitPod("main", func(pod corev1.Pod) error {
		for _, c := range pod.Status.EphemeralContainerStatuses {
			if c.State.Terminated != nil {
				return nil
			}
		}
		return fmt.Errorf("ephemeral containers: %+v", pod.Status.EphemeralContainerStatuses)
	})
	if err := ready(pod); err != nil || pod.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error(status(pod))
	}
}

// A debugging pod on a node sees the node's processes and files.
func TestDebugNode(t *testing.T) {
	f := start(t)
	n := f.Nodes[0]
	out, err := f.KubectlInput(f.ctx, "exit\n", "--namespace", f.namespace, "debug", "node/"+n.Name, "--stdin", "--quiet",
		"--attach", "--image="+cluster.Busybox, "--profile=sysadmin", "--", "sh", "-c", "chroot /host cat "+n.Mica.Config())
	if err != nil || !strings.Contains(out, "state_dir = ") {
		t.Errorf("%v: %s", err, out)
	}
}
