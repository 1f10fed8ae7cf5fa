package guard

import (
	"bytes"
	"encoding/json"
)

// A line of the feed is split once it is known to be valid JSON. The library would scan each value again at each level, which
// takes ten seconds for a snapshot of a million revocations. Nor is a struct decoded, because the library compares the names of
// fields without regard to case.

// object has the members of a JSON object, each as JSON.
type object []member

type member struct{ name, value []byte }

// get returns the value of a member; nil if it is absent. Of two with one name the last one counts, as everywhere.
func (o object) get(name string) json.RawMessage {
	for at := len(o) - 1; at >= 0; at-- {
		if string(o[at].name) == name {
			return o[at].value
		}
	}
	return nil
}

// splitObject appends the members of an object in valid JSON. Returns whether it is one.
func splitObject(text []byte, o object) (object, bool) {
	at := skipSpace(text, 0)
	if at == len(text) || text[at] != '{' {
		return o, false
	}
	for at = skipSpace(text, at+1); text[at] != '}'; {
		end := endOfValue(text, at)
		name := text[at+1 : end-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			plain, _ := textOf(text[at:end])
			name = []byte(plain)
		}
		// Behind the colon.
		at = skipSpace(text, skipSpace(text, end)+1)
		end = endOfValue(text, at)
		o = append(o, member{name, text[at:end]})
		at = skipComma(text, end)
	}
	return o, true
}

// splitList calls a function with each element of a list in valid JSON, until it returns false. Returns whether it is one.
func splitList(text []byte, each func(json.RawMessage) bool) bool {
	at := skipSpace(text, 0)
	if at == len(text) || text[at] != '[' {
		return false
	}
	for at = skipSpace(text, at+1); text[at] != ']'; {
		end := endOfValue(text, at)
		if !each(text[at:end]) {
			return true
		}
		at = skipComma(text, end)
	}
	return true
}

func skipSpace(text []byte, at int) int {
	for at < len(text) && (text[at] == ' ' || text[at] == '\t' || text[at] == '\r' || text[at] == '\n') {
		at++
	}
	return at
}

// skipComma skips what is between two members or elements.
func skipComma(text []byte, at int) int {
	at = skipSpace(text, at)
	if text[at] == ',' {
		at = skipSpace(text, at+1)
	}
	return at
}

// endOfValue returns where the value that begins here ends.
func endOfValue(text []byte, at int) int {
	for depth := 0; at < len(text); at++ {
		switch text[at] {
		case '"':
			for at++; text[at] != '"'; at++ {
				if text[at] == '\\' {
					at++
				}
			}
			if depth == 0 {
				return at + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			// Of what is around a number.
			if depth == 0 {
				return at
			}
			if depth--; depth == 0 {
				return at + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return at
			}
		}
	}
	return at
}
