package cri

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// requestLimits are requests with what their refusal says; "" for those that are within the limits.
func requestLimits() map[string]struct {
	request proto.Message
	says    string
} {
	type row = struct {
		request proto.Message
		says    string
	}
	create := func(change func(*runtimeapi.ContainerConfig)) *runtimeapi.CreateContainerRequest {
		c := &runtimeapi.ContainerConfig{}
		change(c)
		return &runtimeapi.CreateContainerRequest{Config: c}
	}
	labels := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint(i)] = ""
		}
		return m
	}
	return map[string]row{
		"name":      {create(func(c *runtimeapi.ContainerConfig) { c.LogPath = strings.Repeat("x", maxText) }), ""},
		"long name": {create(func(c *runtimeapi.ContainerConfig) { c.LogPath = strings.Repeat("x", maxText+1) }), "log_path has 4097 bytes, more than 4096"},
		"zero byte": {create(func(c *runtimeapi.ContainerConfig) { c.LogPath = "a\x00b" }), "log_path contains a zero byte"},
		"argument":  {create(func(c *runtimeapi.ContainerConfig) { c.Args = []string{strings.Repeat("x", maxValue)} }), ""},
		"annotation": {create(func(c *runtimeapi.ContainerConfig) {
			c.Annotations = map[string]string{"k": strings.Repeat("x", maxValue)}
		}), ""},
		"long value": {create(func(c *runtimeapi.ContainerConfig) {
			c.Annotations = map[string]string{"k": strings.Repeat("x", maxValue+1)}
		}), "more than 1048576"},
		"long key": {create(func(c *runtimeapi.ContainerConfig) {
			c.Annotations = map[string]string{strings.Repeat("x", maxText+1): ""}
		}), "more than 4096"},
		"labels":      {create(func(c *runtimeapi.ContainerConfig) { c.Labels = labels(30_000) }), ""},
		"many labels": {create(func(c *runtimeapi.ContainerConfig) { c.Labels = labels(50_000) }), "more than 100000 fields"},
		"many mounts": {create(func(c *runtimeapi.ContainerConfig) {
			for range maxFields {
				c.Mounts = append(c.Mounts, &runtimeapi.Mount{})
			}
		}), "more than 100000 fields"},
		"many ports":   {&runtimeapi.PortForwardRequest{Port: make([]int32, 2*maxFields)}, "more than 100000 fields"},
		"many filters": {&runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: labels(50_000)}}, "more than 100000 fields"},
	}
}

func TestRequestLimits(t *testing.T) {
	e := start(t, nil)
	conn := e.conn()
	methods := map[string]string{"CreateContainerRequest": "CreateContainer", "PortForwardRequest": "PortForward", "ListContainersRequest": "StreamContainers"}
	for name, row := range requestLimits() {
		t.Run(name, func(t *testing.T) {
			method := "/runtime.v1.RuntimeService/" + methods[string(row.request.ProtoReflect().Descriptor().Name())]
			var err error
			if strings.HasSuffix(method, "StreamContainers") {
				var stream grpc.ClientStream
				if stream, err = conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method); err == nil {
					err = stream.SendMsg(row.request)
				}
				if err == nil {
					err = stream.RecvMsg(&emptypb.Empty{})
				}
			} else {
				err = conn.Invoke(t.Context(), method, row.request, &emptypb.Empty{})
			}
			if row.says == "" && status.Code(err) != codes.Unimplemented {
				t.Errorf("within the limits: %v", err)
			}
			if row.says != "" && (status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), row.says)) {
				t.Errorf("got %v, want an error with %q", err, row.says)
			}
		})
	}
	e.server.limits.refused.Range(func(request, _ any) bool {
		t.Errorf("a refused request is kept: %T", request)
		return true
	})
}

func TestRequestSize(t *testing.T) {
	e := start(t, nil)
	client := runtimeapi.NewRuntimeServiceClient(e.conn())
	_, err := client.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{Cmd: []string{strings.Repeat("x", maxRequestBytes)}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("request of more than 8 MiB: %v", err)
	}
}

// Checking a request costs little, so that it can come before the decoding, and never panics.
func TestCheckMessageAllocatesNothing(t *testing.T) {
	request := &runtimeapi.CreateContainerRequest{Config: &runtimeapi.ContainerConfig{Labels: map[string]string{"a": "b"}, Args: []string{"x", "y"}}}
	data, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	kind := request.ProtoReflect().Descriptor()
	if n := testing.AllocsPerRun(100, func() {
		count := 0
		if err := checkMessage(data, kind, &count, maxDepth); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzCheckMessage(f *testing.F) {
	for _, row := range requestLimits() {
		if data, err := proto.Marshal(row.request); err == nil && len(data) < 1<<12 {
			f.Add(data)
		}
	}
	f.Add(protowire.AppendTag(nil, 2, protowire.BytesType))
	kind := (&runtimeapi.CreateContainerRequest{}).ProtoReflect().Descriptor()
	f.Fuzz(func(t *testing.T, data []byte) {
		count := 0
		if err := checkMessage(data, kind, &count, maxDepth); err == nil && count > maxFields {
			t.Errorf("%d fields", count)
		}
	})
}
