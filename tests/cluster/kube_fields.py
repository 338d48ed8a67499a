"""The fields of Kubernetes objects that our manifests may use: a small table, and a walk over it.

KubeRay's are those of the `ray.io/v1` types of v1.6.2, from its generated API reference; the
others those of Kubernetes 1.30 and later. Each entry is TYPE: {field: type of its value}; `[X]` is
a list of X, `*` anything (a scalar, a map of strings, or what we do not look into).
"""

KUBERAY_VERSION = "v1.6.2"

KINDS = {
    ("ray.io/v1", "RayCluster"): "RayCluster",
    ("ray.io/v1", "RayJob"): "RayJob",
    ("v1", "Namespace"): "Namespace",
    ("v1", "Service"): "Service",
    ("v1", "PersistentVolumeClaim"): "PersistentVolumeClaim",
    ("apps/v1", "Deployment"): "Deployment",
    ("apps/v1", "StatefulSet"): "StatefulSet",
    ("networking.k8s.io/v1", "NetworkPolicy"): "NetworkPolicy",
}


def _object(spec):
    return {"apiVersion": "*", "kind": "*", "metadata": "ObjectMeta", "spec": spec}


def _scalars(*names):
    return dict.fromkeys(names, "*")


KUBERAY = {
    "RayCluster": _object("RayClusterSpec"),
    "RayJob": _object("RayJobSpec"),
    "RayClusterSpec": {
        "upgradeStrategy": "RayClusterUpgradeStrategy",
        "authOptions": "AuthOptions",
        "autoscalerOptions": "AutoscalerOptions",
        "gcsFaultToleranceOptions": "GcsFaultToleranceOptions",
        "headGroupSpec": "HeadGroupSpec",
        "workerGroupSpecs": "[WorkerGroupSpec]",
        **_scalars("suspend", "managedBy", "headServiceAnnotations", "enableInTreeAutoscaling"),
        "rayVersion": "*",
    },
    "RayClusterUpgradeStrategy": _scalars("type"),
    "AuthOptions": _scalars("enableK8sTokenAuth", "secretName", "mode"),
    "AutoscalerOptions": {
        "resources": "ResourceRequirements",
        "securityContext": "SecurityContext",
        "env": "[EnvVar]",
        "envFrom": "[EnvFromSource]",
        "volumeMounts": "[VolumeMount]",
        **_scalars("image", "imagePullPolicy", "idleTimeoutSeconds", "upscalingMode", "version"),
    },
    "GcsFaultToleranceOptions": {
        "redisUsername": "RedisCredential",
        "redisPassword": "RedisCredential",
        **_scalars("externalStorageNamespace", "redisAddress"),
    },
    "RedisCredential": {"valueFrom": "EnvVarSource", "value": "*"},
    "HeadGroupSpec": {
        "template": "PodTemplateSpec",
        "headService": "Service",
        **_scalars("enableIngress", "resources", "labels", "rayStartParams", "serviceType"),
    },
    "WorkerGroupSpec": {
        "template": "PodTemplateSpec",
        "scaleStrategy": "ScaleStrategy",
        **_scalars("suspend", "groupName", "replicas", "minReplicas", "maxReplicas"),
        **_scalars("idleTimeoutSeconds", "resources", "labels", "rayStartParams", "numOfHosts"),
    },
    "ScaleStrategy": _scalars("workersToDelete"),
    "RayJobSpec": {
        "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "PodTemplateSpec",
        "submitterConfig": "SubmitterConfig",
        "deletionStrategy": "*",
        **_scalars("activeDeadlineSeconds", "backoffLimit", "metadata", "clusterSelector"),
        **_scalars("managedBy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode"),
        **_scalars("entrypointResources", "entrypointNumCpus", "entrypointNumGpus"),
        **_scalars("ttlSecondsAfterFinished", "preRunningDeadlineSeconds"),
        **_scalars("shutdownAfterJobFinishes", "suspend"),
    },
    "SubmitterConfig": _scalars("backoffLimit"),
}

KUBERNETES = {
    "ObjectMeta": _scalars("name", "namespace", "labels", "annotations", "generateName"),
    "Namespace": _object("*"),
    "Service": _object("ServiceSpec"),
    "ServiceSpec": {"ports": "[ServicePort]", **_scalars("type", "selector", "clusterIP")},
    "ServicePort": _scalars("name", "port", "targetPort", "protocol"),
    "PersistentVolumeClaim": _object("PersistentVolumeClaimSpec"),
    "PersistentVolumeClaimSpec": {
        "resources": "VolumeResourceRequirements",
        **_scalars("accessModes", "storageClassName", "volumeMode"),
    },
    "VolumeResourceRequirements": _scalars("requests", "limits"),
    "Deployment": _object("DeploymentSpec"),
    "DeploymentSpec": {
        "selector": "LabelSelector",
        "template": "PodTemplateSpec",
        "strategy": "DeploymentStrategy",
        "replicas": "*",
    },
    "DeploymentStrategy": _scalars("type"),
    "StatefulSet": _object("StatefulSetSpec"),
    "StatefulSetSpec": {
        "selector": "LabelSelector",
        "template": "PodTemplateSpec",
        "volumeClaimTemplates": "[PersistentVolumeClaim]",
        **_scalars("serviceName", "replicas"),
    },
    "LabelSelector": {
        "matchLabels": "*",
        "matchExpressions": "[LabelSelectorRequirement]",
    },
    "LabelSelectorRequirement": _scalars("key", "operator", "values"),
    "PodTemplateSpec": {"metadata": "ObjectMeta", "spec": "PodSpec"},
    "PodSpec": {
        "affinity": "Affinity",
        "containers": "[Container]",
        "initContainers": "[Container]",
        "securityContext": "PodSecurityContext",
        "tolerations": "[Toleration]",
        "volumes": "[Volume]",
        **_scalars("automountServiceAccountToken", "enableServiceLinks", "nodeSelector"),
        **_scalars("restartPolicy", "serviceAccountName", "terminationGracePeriodSeconds"),
    },
    "Affinity": {"nodeAffinity": "NodeAffinity"},
    "NodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": "NodeSelector"},
    "NodeSelector": {"nodeSelectorTerms": "[NodeSelectorTerm]"},
    "NodeSelectorTerm": {"matchExpressions": "[NodeSelectorRequirement]"},
    "NodeSelectorRequirement": _scalars("key", "operator", "values"),
    "Toleration": _scalars("key", "operator", "value", "effect", "tolerationSeconds"),
    "PodSecurityContext": {
        "seccompProfile": "SeccompProfile",
        **_scalars("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy"),
    },
    "SeccompProfile": _scalars("type", "localhostProfile"),
    "Container": {
        "env": "[EnvVar]",
        "envFrom": "[EnvFromSource]",
        "ports": "[ContainerPort]",
        "resources": "ResourceRequirements",
        "securityContext": "SecurityContext",
        "volumeMounts": "[VolumeMount]",
        "readinessProbe": "Probe",
        "livenessProbe": "Probe",
        "startupProbe": "Probe",
        **_scalars("name", "image", "command", "args", "imagePullPolicy", "workingDir"),
    },
    "EnvVar": {"name": "*", "value": "*", "valueFrom": "EnvVarSource"},
    "EnvVarSource": {"secretKeyRef": "SecretKeySelector"},
    "SecretKeySelector": _scalars("name", "key", "optional"),
    "EnvFromSource": {"secretRef": "SecretEnvSource"},
    "SecretEnvSource": _scalars("name", "optional"),
    "ContainerPort": _scalars("containerPort", "name", "protocol"),
    "ResourceRequirements": _scalars("requests", "limits"),
    "SecurityContext": {
        "capabilities": "Capabilities",
        "seccompProfile": "SeccompProfile",
        **_scalars("allowPrivilegeEscalation", "readOnlyRootFilesystem", "runAsNonRoot"),
        **_scalars("runAsUser", "runAsGroup"),
    },
    "Capabilities": _scalars("add", "drop"),
    "VolumeMount": _scalars("name", "mountPath", "readOnly", "subPath"),
    "Probe": {
        "tcpSocket": "TCPSocketAction",
        "httpGet": "HTTPGetAction",
        "exec": "ExecAction",
        **_scalars("periodSeconds", "timeoutSeconds", "failureThreshold", "initialDelaySeconds"),
    },
    "TCPSocketAction": _scalars("port"),
    "HTTPGetAction": _scalars("path", "port", "scheme"),
    "ExecAction": _scalars("command"),
    "Volume": {
        "name": "*",
        "persistentVolumeClaim": "PersistentVolumeClaimVolumeSource",
        "configMap": "ConfigMapVolumeSource",
        "secret": "SecretVolumeSource",
        "emptyDir": "EmptyDirVolumeSource",
    },
    "PersistentVolumeClaimVolumeSource": _scalars("claimName", "readOnly"),
    "ConfigMapVolumeSource": {"items": "[KeyToPath]", **_scalars("name", "optional")},
    "SecretVolumeSource": {
        "items": "[KeyToPath]",
        **_scalars("secretName", "defaultMode", "optional"),
    },
    "KeyToPath": _scalars("key", "path", "mode"),
    "EmptyDirVolumeSource": _scalars("medium", "sizeLimit"),
    "NetworkPolicy": _object("NetworkPolicySpec"),
    "NetworkPolicySpec": {
        "podSelector": "LabelSelector",
        "ingress": "[NetworkPolicyIngressRule]",
        "egress": "[NetworkPolicyEgressRule]",
        "policyTypes": "*",
    },
    "NetworkPolicyIngressRule": {"from": "[NetworkPolicyPeer]", "ports": "[NetworkPolicyPort]"},
    "NetworkPolicyEgressRule": {"to": "[NetworkPolicyPeer]", "ports": "[NetworkPolicyPort]"},
    "NetworkPolicyPeer": {
        "podSelector": "LabelSelector",
        "namespaceSelector": "LabelSelector",
        "ipBlock": "*",
    },
    "NetworkPolicyPort": _scalars("protocol", "port", "endPort"),
}

FIELDS = KUBERAY | KUBERNETES

# What each must say; the API server refuses an object without.
REQUIRED = {
    "RayClusterSpec": {"headGroupSpec"},
    "HeadGroupSpec": {"template"},
    "WorkerGroupSpec": {"groupName", "template"},
    "RayJobSpec": {"entrypoint"},
    "DeploymentSpec": {"selector", "template"},
    "StatefulSetSpec": {"selector", "template"},
    "PodSpec": {"containers"},
    "Container": {"name"},
    "EnvVar": {"name"},
    "SecretKeySelector": {"key"},
    "ContainerPort": {"containerPort"},
    "VolumeMount": {"name", "mountPath"},
    "Volume": {"name"},
    "PersistentVolumeClaimVolumeSource": {"claimName"},
    "KeyToPath": {"key", "path"},
    "ServicePort": {"port"},
    "NodeSelector": {"nodeSelectorTerms"},
    "NodeSelectorRequirement": {"key", "operator"},
    "LabelSelectorRequirement": {"key", "operator"},
    "NetworkPolicySpec": {"podSelector"},
    "SeccompProfile": {"type"},
    "TCPSocketAction": {"port"},
    "HTTPGetAction": {"port"},
}

# Values that KubeRay's own validation restricts.
VALUES = {
    ("AuthOptions", "mode"): {"disabled", "token"},
    ("AutoscalerOptions", "version"): {"v1", "v2"},
    ("AutoscalerOptions", "upscalingMode"): {"Default", "Aggressive", "Conservative"},
    ("RayJobSpec", "submissionMode"): {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
}


def problems(document):
    """One line for each field that is unknown, missing, of the wrong shape or value."""
    kind = (document.get("apiVersion"), document.get("kind"))
    if kind not in KINDS:
        return [f"{kind}: not a kind we know"]
    return list(_walk(document, KINDS[kind], document["kind"]))


def _walk(value, type_, path):
    if type_ == "*":
        return
    if type_.startswith("["):
        if not isinstance(value, list):
            yield f"{path}: a list is wanted"
            return
        for i, item in enumerate(value):
            yield from _walk(item, type_[1:-1], f"{path}[{i}]")
        return
    if not isinstance(value, dict):
        yield f"{path}: a {type_} is wanted"
        return
    fields = FIELDS[type_]
    for name in sorted(REQUIRED.get(type_, set()) - value.keys()):
        yield f"{path}.{name}: missing"
    for name, child in value.items():
        if name not in fields:
            yield f"{path}.{name}: {type_} has no such field"
            continue
        allowed = VALUES.get((type_, name))
        if allowed and child not in allowed:
            yield f"{path}.{name}: {child} is none of {', '.join(sorted(allowed))}"
        yield from _walk(child, fields[name], f"{path}.{name}")
