package registry

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/testregistry"
)

// random returns n bytes.
func random(n int) string {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return string(data)
}

// Transfers survive faults of the network, and only missing bytes are sent again.
func TestTransfersAreResumed(t *testing.T) {
	content := random(3 << 20)
	for name, c := range map[string]struct {
		fault  testregistry.Fault
		ranges []string // Range headers of the layer's requests
	}{
		"reset":             {testregistry.Fault{Kind: testregistry.Reset, At: 1 << 20, Times: 1}, []string{"", "bytes="}},
		"truncated":         {testregistry.Fault{Kind: testregistry.Truncate, At: 1 << 20, Times: 1}, []string{"", "bytes=1048576-"}},
		"ends early":        {testregistry.Fault{Kind: testregistry.Short, At: 1 << 20, Times: 1}, []string{"", "bytes=1048576-"}},
		"hangs":             {testregistry.Fault{Kind: testregistry.Hang, At: 1 << 20, Times: 1}, []string{"", "bytes=1048576-"}},
		"hangs at once":     {testregistry.Fault{Kind: testregistry.Hang, Times: 2}, []string{"", "", ""}},
		"500 twice":         {testregistry.Fault{Kind: testregistry.Status, Code: 503, Times: 2}, []string{"", "", ""}},
		"429":               {testregistry.Fault{Kind: testregistry.Status, Code: 429, RetryAfter: "1", Times: 1}, []string{"", ""}},
		"cut again, moving": {testregistry.Fault{Kind: testregistry.Truncate, At: 1 << 20, Times: 2}, []string{"", "bytes=1048576-", "bytes=2097152-"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, testregistry.Auth{}, "")
			if c.fault.Kind == testregistry.Hang {
				// Longer than a busy machine delays the registry, because each request is counted.
				e.client.Reload(Options{CertsDirs: []string{e.certs}, StallTimeout: 2 * time.Second, Attempts: 3, Backoff: time.Millisecond})
			}
			e.push(image{content: content})
			c.fault.Path = digest.FromString(content).String()
			e.registry.AddFault(c.fault)
			started := time.Now()
			if _, err := e.pull(e.ref("app:v1"), Auth{}); err != nil {
				t.Fatal(err)
			}
			var ranges []string
			for _, r := range e.registry.Requests() {
				if strings.Contains(r.Path, c.fault.Path) {
					ranges = append(ranges, r.Range)
				}
			}
			ok := len(ranges) == len(c.ranges)
			for i := range ranges {
				ok = ok && strings.HasPrefix(ranges[i], c.ranges[i])
			}
			if !ok {
				t.Errorf("ranges %q, want %q", ranges, c.ranges)
			}
			if c.fault.RetryAfter != "" && time.Since(started) < time.Second {
				t.Error("Retry-After was not honoured")
			}
		})
	}
}

// A server that ignores ranges sends bytes again, which are skipped.
func TestServerThatIgnoresRanges(t *testing.T) {
	e := newEnv(t, testregistry.Auth{}, "")
	content := random(1 << 20)
	e.push(image{content: content})
	path := digest.FromString(content).String()
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Truncate, Path: path, At: 300_000, Times: 1})
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.IgnoreRange, Path: path})
	if _, err := e.pull(e.ref("app:v1"), Auth{}); err != nil {
		t.Error(err)
	}
}
