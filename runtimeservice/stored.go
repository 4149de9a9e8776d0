package runtimeservice

import (
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// message is a pointer to a generated protobuf type.
type message[M any] interface {
	*M
	proto.Message
}

// stored is a CRI message in a record. Unlike encoding/json on the generated
// type, its form on disk keeps every byte of every field.
type stored[M any, P message[M]] struct{ Msg P }

func (s stored[M, P]) MarshalJSON() ([]byte, error) {
	if s.Msg == nil {
		return []byte("null"), nil
	}
	return protojson.Marshal(s.Msg)
}

func (s *stored[M, P]) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		s.Msg = nil
		return nil
	}
	s.Msg = P(new(M))
	// A record that a newer version wrote may have fields unknown to this one.
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, s.Msg)
}
