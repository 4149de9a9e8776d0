package main

import (
	"strings"
	"testing"
	"time"

	"github.com/micarun/mica/internal/admin"
)

func TestLineOfAnEvent(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	stages := []admin.Stage{{Name: "make cgroup", Seconds: 0.00043}, {Name: "set up network", Seconds: 61.4}}
	for want, e := range map[string]admin.Event{
		"2026-01-02T03:05:06.500Z run pod shop/web-0 [0123456789abc]: done in 1m2s (make cgroup 430µs, set up network 1m1s)":                                               {What: "run pod", Pod: id, Name: "shop/web-0", Seconds: 61.5, Stages: stages},
		"2026-01-02T03:05:06.500Z run pod shop/web-0 [0123456789abc]: running for 1m2s, 2 calls wait (make cgroup 430µs, now: set up network 1m1s)":                        {What: "run pod", Pod: id, Name: "shop/web-0", Seconds: 61.5, Stages: stages, Running: true, Calls: 2},
		"2026-01-02T03:05:06.500Z run pod shop/web-0 [0123456789abc]: failed after 1m2s (make cgroup 430µs, failed: set up network 1m1s): set up network: no; and no more": {What: "run pod", Pod: id, Name: "shop/web-0", Seconds: 61.5, Stages: stages, Error: "set up network: no\nand no more"},
		"2026-01-02T03:04:05.000Z container ended shop/web-0/web [0123456789abc]: OOMKilled, exit code 137":                                                                {What: "container ended", Pod: "p", Container: id, Name: "shop/web-0/web", Detail: "OOMKilled, exit code 137"},
		"2026-01-02T03:04:07.340Z pull image busybox: running for 2.34s, 1 call waits (now: fetch layers 1.2s): 1 of 2 layers":                                             {What: "pull image", Image: "busybox", Seconds: 2.34, Stages: []admin.Stage{{Name: "fetch layers", Seconds: 1.2}}, Running: true, Calls: 1, Detail: "1 of 2 layers"},
		"2026-01-02T03:04:05.000Z remove leftover: cgroup /x":                                                                                                              {What: "remove leftover", Detail: "cgroup /x"},
		"2026-01-02T03:04:05.001Z run pod a/b: failed after 1ms: no":                                                                                                       {What: "run pod", Name: "a/b", Seconds: 0.001, Error: "no"},
	} {
		e.Started = begun
		if got := line(e); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestEventFilter(t *testing.T) {
	e := admin.Event{Pod: "abc123", Name: "shop/web-0/nginx"}
	for pod, want := range map[string]bool{
		"": true, "abc": true, "abc123": true, "b": false, "web-0": true, "shop/web-0": true, "shop": false, "nginx": false, "web": false,
		"other/web-0": false,
	} {
		if got := (eventFilter{pod: pod}).wants(e); got != want {
			t.Errorf("--pod %q: %v", pod, got)
		}
	}
	if (eventFilter{running: true}).wants(e) {
		t.Error("--running selects an ended operation")
	}
	if (eventFilter{pod: "abc"}).wants(admin.Event{Image: "abc"}) {
		t.Error("--pod selects an image")
	}
}
