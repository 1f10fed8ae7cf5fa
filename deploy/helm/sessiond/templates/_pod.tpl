{{- define "sessiond.labels" -}}
app.kubernetes.io/name: sessiond
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The container, for a command. */}}
{{- define "sessiond.container" -}}
name: sessiond
{{- if .Values.image.digest }}
image: "{{ .Values.image.repository }}@{{ .Values.image.digest }}"
{{- else }}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
{{- end }}
env:
  - { name: DATABASE_URL, value: {{ required "databaseUrl is required: postgres://user@host/database, without a password" .Values.databaseUrl | quote }} }
  - { name: SESSIOND_DATABASE_PASSWORD_FILE, value: /run/secrets/sessiond/database-password }
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - { name: secrets, mountPath: /run/secrets/sessiond, readOnly: true }
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: { drop: [ALL] }
  readOnlyRootFilesystem: true
{{- end }}

{{- define "sessiond.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: { type: RuntimeDefault }
volumes:
  # Files, not variables: child processes, crash reports and `kubectl describe` do not show them.
  - name: secrets
    secret:
      secretName: {{ required "secret is required: the name of a Secret with sealing-key and database-password" .Values.secret | quote }}
      defaultMode: 0440
  {{- with .Values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "sessiond.server" -}}
args: [serve]
ports:
  - { name: api, containerPort: 8080 }
  - { name: metrics, containerPort: 9464 }
livenessProbe:
  httpGet: { path: /healthz, port: api }
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 3
readinessProbe:
  httpGet: { path: /readyz, port: api }
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
startupProbe:
  httpGet: { path: /healthz, port: api }
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 60
resources:
  requests: { cpu: 250m, memory: 128Mi }
  limits: { cpu: "2", memory: 512Mi }
{{- end }}

{{- define "sessiond.server.pod" -}}
serviceAccountName: {{ .Release.Name }}
# Longer than --drain-delay and --shutdown-timeout together.
terminationGracePeriodSeconds: 30
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "sessiond.labels" $ | nindent 8 }}
        app.kubernetes.io/component: server
  {{- end }}
{{- end }}
