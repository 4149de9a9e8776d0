package state

import (
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// messagePointer is a pointer to a generated protobuf type.
type messagePointer[M any] interface {
	*M
	proto.Message
}

// Message is a CRI message in a record or state. Unlike encoding/json on the generated type, its
// form on disk keeps every byte of every field.
type Message[M any, P messagePointer[M]] struct{ Msg P }

// MarshalJSON returns the protojson form, null for a nil message.
func (m Message[M, P]) MarshalJSON() ([]byte, error) {
	if m.Msg == nil {
		return []byte("null"), nil
	}
	return protojson.Marshal(m.Msg)
}

// UnmarshalJSON reads the form of MarshalJSON.
func (m *Message[M, P]) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		m.Msg = nil
		return nil
	}
	m.Msg = P(new(M))
	// A record that a newer version wrote may have fields unknown to this one.
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m.Msg)
}
