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
envFrom:
  - secretRef: { name: {{ required "secret is required: the name of a Secret with DATABASE_URL and SESSIOND_SEALING_KEY" .Values.secret | quote }} }
{{- with .Values.env }}
env: {{- toYaml . | nindent 2 }}
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
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "sessiond.server" -}}
args: [serve]
ports:
  - { name: api, containerPort: 8080 }
  - { name: metrics, containerPort: 9464 }
livenessProbe:
  httpGet: { path: /healthz, port: api }
  timeoutSeconds: 3
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
