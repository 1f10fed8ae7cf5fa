// Command hello is a service behind the guard: it knows the signed-in user, and refuses a signed-out one at once. With ./run in
// another shell:
//
//	. .sessiond/dev.env && export SESSIOND_URL SESSIOND_PROJECT_ID SESSIOND_VERIFIER_KEY
//	(cd clients/go && go run ./examples/hello)
//
//	curl -i localhost:8082/ -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"      # 200: who you are
//	curl -X DELETE $SESSIOND_URL/auth/sessions/current -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"
//	curl -i localhost:8082/ -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"      # 401: SESSION_REVOKED
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"sessiond.example/guard"
)

func main() {
	g, err := guard.Connect(context.Background(), guard.Options{
		URLs:      strings.Split(os.Getenv("SESSIOND_URL"), ","),
		Project:   os.Getenv("SESSIOND_PROJECT_ID"),
		Issuer:    os.Getenv("SESSIOND_ISSUER"),
		ServerKey: os.Getenv("SESSIOND_VERIFIER_KEY"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer g.Close()

	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello, %s!\n", guard.PrincipalOf(r.Context()).UserID)
	})
	pay := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "Paid.") })
	stronger := guard.WithRequirement(guard.Requirement{ACR: []string{"aal2"}, MaxAge: 5 * time.Minute})
	mux.Handle("/pay", g.Handler(pay, stronger))

	port := os.Getenv("PORT")
	if port == "" {
		port = "8082"
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, g.Handler(mux)))
}
