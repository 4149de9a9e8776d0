package wire

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestMessageRoundTrip(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, body := range []any{
		&Create{ID: "a", Runtime: []string{"/r"}, Bundle: "/b", Terminal: true, Timeout: time.Second},
		&Hello{Version: 1, Min: 1, Orphans: []string{"x"}},
		&State{ID: "a", Pid: 3, Exit: &Exit{Code: 137, Signal: 9, At: at, OOMKilled: true}},
		&List{States: []State{{ID: "a"}}, More: true},
	} {
		data, err := Encode(Message{ID: 7, Op: OpCreate}, body)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Decode(data)
		if err != nil || m.ID != 7 || m.Op != OpCreate {
			t.Fatalf("%+v, %v", m, err)
		}
		switch want := body.(type) {
		case *Create:
			same(t, m, want)
		case *Hello:
			same(t, m, want)
		case *State:
			same(t, m, want)
		case *List:
			same(t, m, want)
		}
	}
}

func same[T any](t *testing.T, m Message, want *T) {
	t.Helper()
	got := new(T)
	if err := m.Into(got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLimits(t *testing.T) {
	if _, err := Encode(Message{Op: "x"}, strings.Repeat("a", MaxMessage)); err == nil {
		t.Error("Encode accepts a body that is too large")
	}
	if _, err := Decode(make([]byte, MaxMessage+1)); err == nil {
		t.Error("Decode accepts a packet that is too large")
	}
	if e := Errorf(CodeInternal, "%s", strings.Repeat("é", MaxText)); len(e.Text) > MaxText+8 {
		t.Errorf("error of %d bytes", len(e.Text))
	}
	if err := (&Error{Code: CodeNotFound, Text: "x"}); AsError(errors.Join(err)).Code != CodeNotFound {
		t.Error("AsError drops the code of a wrapped Error")
	}
	// The largest page of a list fits into one packet.
	page := List{More: true}
	for range PageSize {
		page.States = append(page.States, State{ID: strings.Repeat("f", MaxID), Pid: 1 << 22, Exit: &Exit{
			Code: 255, Signal: 64, At: time.Now(), OOMKilled: true, Reason: strings.Repeat("r", 200),
		}})
	}
	if _, err := Encode(Message{ID: 1 << 60, Op: OpList}, page); err != nil {
		t.Error(err)
	}
}

func TestAgree(t *testing.T) {
	for _, tc := range []struct {
		peer Hello
		ok   bool
	}{
		{Hello{Version: Version, Min: MinVersion}, true},
		{Hello{Version: Version + 5, Min: Version}, true},
		{Hello{Version: Version + 5, Min: Version + 1}, false},
		{Hello{Version: MinVersion - 1, Min: 0}, false},
		{Hello{}, false},
	} {
		if v, err := tc.peer.Agree(); (err == nil) != tc.ok || tc.ok && v != Version {
			t.Errorf("%+v: %d, %v", tc.peer, v, err)
		}
	}
}

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{
		"a": true, "0af": true, "A_b.c-d": true, strings.Repeat("f", 64): true,
		"": false, ".": false, "..": false, ".x": false, "a/b": false, "a b": false, "a\x00": false, "ä": false, strings.Repeat("f", MaxID+1): false,
	} {
		if err := CheckID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func socketPair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewConn(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

func TestConnPassesDescriptors(t *testing.T) {
	a, b := socketPair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	packet, err := Encode(Message{Op: OpDescriptors, FDs: []string{"w"}}, Descriptors{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Send(packet, []int{int(w.Fd())}); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	m, fds, err := b.Receive(nil)
	if err != nil || m.Op != OpDescriptors || len(fds) != 1 {
		t.Fatalf("%+v, %v, %v", m, fds, err)
	}
	if _, err := unix.Write(fds["w"], []byte("hi")); err != nil {
		t.Fatal(err)
	}
	fds.Close()
	if data, err := io.ReadAll(r); err != nil || string(data) != "hi" {
		t.Errorf("%q, %v", data, err)
	}
	_ = a.Close()
	if _, _, err := b.Receive(nil); !errors.Is(err, io.EOF) {
		t.Errorf("after close: %v", err)
	}
}

func TestConnRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		packet []byte
		fds    int
	}{
		"too large":            {make([]byte, MaxMessage+1), 0},
		"no JSON":              {[]byte("hello"), 0},
		"no operation":         {[]byte("{}"), 0},
		"unnamed":              {[]byte(`{"op":"x"}`), 1},
		"not sent":             {[]byte(`{"op":"x","fds":["a"]}`), 0},
		"named twice":          {[]byte(`{"op":"x","fds":["a","a"]}`), 2},
		"too many descriptors": {[]byte(`{"op":"x"}`), MaxFDs + 1},
		"too many names":       {[]byte(`{"op":"x","fds":[` + strings.Repeat(`"a",`, MaxFDs) + `"a"]}`), 0},
		"body of another type": {[]byte(`{"op":1}`), 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := socketPair(t)
			before := countFDs(t)
			fds := make([]int, tc.fds)
			for i := range fds {
				fds[i] = 0
			}
			if err := a.Send(tc.packet, fds); err != nil {
				t.Fatal(err)
			}
			if m, _, err := b.Receive(nil); err == nil {
				t.Errorf("Receive accepts %+v", m)
			}
			if after := countFDs(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestSendTimesOut(t *testing.T) {
	a, _ := socketPair(t)
	packet, err := Encode(Message{Op: "x"}, strings.Repeat("a", MaxMessage/2))
	if err != nil {
		t.Fatal(err)
	}
	_ = a.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	for range 1000 {
		if err = a.Send(packet, nil); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Send to a peer that does not read: %v", err)
	}
}

func TestListenAndDialInADeepDirectory(t *testing.T) {
	dir := t.TempDir() + strings.Repeat("/deep-directory", 12)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(dir); !Absent(err) {
		t.Errorf("Dial without socket: %v", err)
	}
	for range 2 { // the second replaces a stale socket
		fd, err := Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Dial(dir)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = unix.Close(fd)
		if _, err := Dial(dir); !Absent(err) {
			t.Errorf("Dial of a stale socket: %v", err)
		}
	}
	st, err := os.Stat(dir + "/" + SocketName)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
}

// Property: no packet makes the parser panic. An accepted packet can be encoded again, with the
// same meaning.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{
		`{"op":"create","id":1,"body":{"id":"a","runtime":["/r"],"bundle":"/b"}}`,
		`{"op":"kill","id":18446744073709551615,"body":{"id":"a","signal":-1}}`,
		`{"op":"exit","body":{"exit":{"at":"2026-01-02T03:04:05Z"}}}`,
		`{"op":"x","fds":["a","b"],"error":{"code":"","text":""}}`, `{"op":"hello","body":null}`, `[]`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Decode(data)
		if err != nil {
			return
		}
		for _, body := range []any{new(Hello), new(Create), new(Init), new(Restore), new(Kill), new(Resize), new(Attach), new(List), new(State), new(Descriptors), new(Upgrade)} {
			if m.Into(body) != nil {
				continue
			}
			if c, ok := body.(interface{ Check() error }); ok && c.Check() == nil {
				var t2 Target
				if m.Into(&t2) != nil || CheckID(t2.ID) != nil {
					t.Errorf("%s: Check accepts an invalid ID", data)
				}
			}
		}
		again, err := Encode(m, nil)
		if err != nil {
			return // larger in canonical form
		}
		n, err := Decode(again)
		if err != nil {
			t.Fatalf("%q becomes %q: %v", data, again, err)
		}
		if n.ID != m.ID || n.Op != m.Op || len(n.FDs) != len(m.FDs) || len(m.Body) > 0 && !json.Valid(n.Body) {
			t.Errorf("%+v becomes %+v", m, n)
		}
	})
}
