package cri

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that limits stands before
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/micarun/mica/internal/sent"
)

// Limits of requests. The kubelet's requests describe one pod or container, which the API server
// limits to 1.5 MiB.
const (
	// maxRequestBytes is the size of an encoded request.
	maxRequestBytes = 8 << 20
	// maxFields is the number of fields of a request, with all entries of lists and maps. An entry of
	// two bytes can take 200 when it is decoded.
	maxFields = 100_000
	// maxText is the size of a text in bytes, such as a name, a path, or the key of a label. The
	// kernel limits paths to it.
	maxText = 4 << 10
	// maxValue is the size of a text that users may fill: the value of an annotation or of a variable,
	// an argument, a credential.
	maxValue = 1 << 20
	// maxDepth is the nesting of messages, which is 7 in the CRI.
	maxDepth = 16
)

// values are the names of text fields that may be as long as maxValue.
var values = map[protoreflect.Name]bool{
	"value": true, "command": true, "args": true, "cmd": true,
	"username": true, "password": true, "auth": true, "identity_token": true, "registry_token": true,
}

// limits is a codec that checks requests before it decodes them. The server refuses a request for
// which violation returns an error.
type limits struct {
	encoding.CodecV2

	refused sync.Map // requests that were not decoded, with the reasons
}

func newLimits() *limits { return &limits{CodecV2: encoding.GetCodecV2("proto")} }

// Unmarshal decodes a request that is within the limits, and leaves others empty. An error of its own
// would reach neither log nor metrics.
func (l *limits) Unmarshal(data mem.BufferSlice, request any) error {
	if message, ok := request.(proto.Message); ok {
		encoded := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer encoded.Free()
		count := 0
		if err := checkMessage(encoded.ReadOnlyData(), message.ProtoReflect().Descriptor(), &count, maxDepth); err != nil {
			l.refused.Store(request, err)
			return nil
		}
	}
	return l.CodecV2.Unmarshal(data, request)
}

// tracked is an answer whose handler waits until it has been sent.
type tracked struct {
	proto.Message
	answer *sent.Answer
}

// Marshal encodes an answer. The buffer of a tracked one reports that it has been sent.
func (l *limits) Marshal(v any) (mem.BufferSlice, error) {
	t, ok := v.(*tracked)
	if !ok {
		return l.CodecV2.Marshal(v)
	}
	data, err := proto.Marshal(t.Message)
	if err != nil || mem.IsBelowBufferPoolingThreshold(cap(data)) { // gRPC does not release a small buffer
		t.answer.Sent()
		return mem.BufferSlice{mem.SliceBuffer(data)}, err
	}
	return mem.BufferSlice{mem.NewBuffer(&data, released{t.answer})}, nil
}

// released is the pool of one buffer, to which gRPC returns the buffer once it is written.
type released struct{ answer *sent.Answer }

// Get implements mem.BufferPool.
func (released) Get(length int) *[]byte {
	data := make([]byte, length)
	return &data
}

// Put implements mem.BufferPool.
func (r released) Put(*[]byte) { r.answer.Sent() }

// violation returns ErrInvalidArgument for a request that exceeds a limit. It must be called once for
// every request.
func (l *limits) violation(request any) error {
	err, refused := l.refused.LoadAndDelete(request)
	if !refused {
		return nil
	}
	return fmt.Errorf("%w: %w", err.(error), errdefs.ErrInvalidArgument)
}

// checkMessage checks an encoded message. It counts its fields in count and allocates nothing.
func checkMessage(data []byte, kind protoreflect.MessageDescriptor, count *int, depth int) error {
	if depth == 0 {
		return fmt.Errorf("request: messages are nested deeper than %d", maxDepth)
	}
	for len(data) > 0 {
		if *count++; *count > maxFields {
			return fmt.Errorf("request: more than %d fields and entries", maxFields)
		}
		number, wire, n := protowire.ConsumeTag(data)
		if n < 0 {
			return nil // the decoder says what is wrong
		}
		data = data[n:]
		size := protowire.ConsumeFieldValue(number, wire, data)
		if size < 0 {
			return nil
		}
		value := data[:size]
		data = data[size:]
		field := kind.Fields().ByNumber(number)
		if field == nil || wire != protowire.BytesType {
			continue
		}
		content, _ := protowire.ConsumeBytes(value)
		if err := checkField(content, field, count, depth); err != nil {
			return err
		}
	}
	return nil
}

func checkField(content []byte, field protoreflect.FieldDescriptor, count *int, depth int) error {
	switch field.Kind() {
	case protoreflect.MessageKind:
		return checkMessage(content, field.Message(), count, depth-1)
	case protoreflect.StringKind:
		limit := maxText
		if values[field.Name()] {
			limit = maxValue
		}
		if len(content) > limit {
			return fmt.Errorf("request: field %s has %d bytes, more than %d", field.FullName(), len(content), limit)
		}
		if bytes.IndexByte(content, 0) >= 0 {
			return fmt.Errorf("request: field %s contains a zero byte", field.FullName())
		}
	case protoreflect.BytesKind, protoreflect.GroupKind:
	default: // a packed list of numbers of one byte or more each
		if *count += len(content); *count > maxFields {
			return fmt.Errorf("request: more than %d fields and entries", maxFields)
		}
	}
	return nil
}
